"""How a stage is divided among the devices of one peer: a mesh "data" x "model".

"model" is tensor parallelism (Shoeybi et al. 2019, section 3): each device has some of
the heads, of the feed-forward channels and of the vocabulary; what it adds to the
residual stream is summed over the devices, twice for each block and pass. "data"
divides the sequences of a microbatch.

What does not divide is whole on each device: matrices of heads if the key heads are no
multiple of the axis, else whatever has a size that is none; and all that is not in
``_DIVIDED``, which is small.

Shape suffixes: B microbatch, L sequence, H heads, K head size, G groups.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from models.config import GPTConfig

DATA, MODEL = "data", "model"
AXES = DATA, MODEL

_QKV = "attention", "qkv"
_DIVIDED = {
    (*_QKV, "kernel"): -1,
    (*_QKV, "bias"): -1,
    ("attention", "output", "kernel"): -2,
    ("feed_forward", "input", "kernel"): -1,
    ("feed_forward", "input", "bias"): -1,
    ("feed_forward", "gate", "kernel"): -1,
    ("feed_forward", "gate", "bias"): -1,
    ("feed_forward", "output", "kernel"): -2,
    ("embed", "embedding"): -2,
    ("tied", "embedding"): -2,
    ("head", "output", "kernel"): -1,
    ("head", "output", "bias"): -1,
}
"""Which axis of a parameter is divided over "model", by the end of its path."""


def head_groups(config: GPTConfig, mesh: Mesh | None) -> int:
    """Into how many groups the heads are divided; 1 where they are not."""
    ways = 1 if mesh is None else mesh.shape[MODEL]
    return 1 if config.kv_heads % ways else ways


def weight_specs(config: GPTConfig, params: Any, mesh: Mesh) -> Any:
    """A ``PartitionSpec`` for each of a stage's weights, which name no "data".

    Args:
        params: Tree of a stage's parameters, arrays or ``jax.ShapeDtypeStruct``.
    """
    ways = mesh.shape[MODEL]

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        names = tuple(key.key for key in path)
        axis = next((a for end, a in _DIVIDED.items() if _ends(names, end)), None)
        if axis is None or leaf.shape[axis] % ways:
            return P()
        if "attention" in names and head_groups(config, mesh) == 1:
            return P()
        axes: list[str | None] = [None] * leaf.ndim
        axes[axis] = MODEL
        return P(*axes)

    return jax.tree.map_with_path(spec, params)


def group_heads(config: GPTConfig, mesh: Mesh, params: Any) -> Any:
    """Brings a tree like the parameters into the order that weights have on a mesh.

    Columns of ``qkv`` are all queries, all keys, all values; a contiguous share of that
    would be no device's own heads. Here they are a group after the other: its queries,
    its keys, its values.
    """
    groups = head_groups(config, mesh)
    splits = _splits(config.num_heads, config.kv_heads, config.head_dim)

    def group(leaf: jax.Array) -> jax.Array:
        parts = jnp.split(leaf, splits, axis=-1)
        split = [part.reshape(*leaf.shape[:-1], groups, -1) for part in parts]
        return jnp.concatenate(split, axis=-1).reshape(leaf.shape)

    return params if groups == 1 else _of_qkv(group, params)


def ungroup_heads(config: GPTConfig, mesh: Mesh, weights: Any) -> Any:
    """The inverse of ``group_heads``."""
    groups = head_groups(config, mesh)
    counts = config.num_heads // groups, config.kv_heads // groups
    splits = _splits(*counts, config.head_dim)

    def ungroup(leaf: jax.Array) -> jax.Array:
        grouped = leaf.reshape(*leaf.shape[:-1], groups, -1)
        parts = jnp.split(grouped, splits, axis=-1)
        joined = [part.reshape(*leaf.shape[:-1], -1) for part in parts]
        return jnp.concatenate(joined, axis=-1)

    return weights if groups == 1 else _of_qkv(ungroup, weights)


def split_heads(
    x_BLHK: jax.Array, heads: int, kv_heads: int, groups: int, mesh: Mesh | None
) -> tuple[jax.Array, ...]:
    """Queries, keys and values, of which each device has its own heads.

    Args:
        x_BLHK: Product with ``qkv``; on a mesh in the order of ``group_heads``.
        heads: Of the queries.
        kv_heads: Of keys, and of values.
        groups: What ``head_groups`` says.
    """
    *shape_BL, _, size = x_BLHK.shape
    x_BLGHK = x_BLHK.reshape(*shape_BL, groups, -1, size)
    parts = jnp.split(x_BLGHK, _splits(heads // groups, kv_heads // groups), axis=-2)
    owner = MODEL if groups > 1 else None
    return tuple(
        constrain(mesh, part.reshape(*shape_BL, -1, size), DATA, None, owner, None)
        for part in parts
    )


def constrain(mesh: Mesh | None, x: jax.Array, *axes: str | None) -> jax.Array:
    """Says over which axes of the mesh, if there is one, the axes of ``x`` go."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))


def _splits(heads: int, kv_heads: int, size: int = 1) -> tuple[int, int]:
    """Where keys and values begin, in heads or, with a head's size, columns."""
    return heads * size, (heads + kv_heads) * size


def _of_qkv(reorder: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
    def visit(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = tuple(key.key for key in path)
        return reorder(leaf) if _ends(names[:-1], _QKV) else leaf

    return jax.tree.map_with_path(visit, tree)


def _ends(names: tuple[str, ...], end: tuple[str, ...]) -> bool:
    return names[-len(end) :] == end
