"""The model as pure functions of plain pytrees, one stage at a time.

A stage holds a contiguous run of blocks; the first also embeds tokens, the last also
takes the loss. Its parameters are nested dicts of arrays::

    embed     first stage: {"embedding": [V, E], ...}
    blocks    the leaves of a block, stacked over the stage's blocks: [n, ...]; what
              ``apply`` and the like are given may be a tuple of one tree per block
    compress  {"2": ...}: the sender's half of the boundary layer after 2 blocks of the
              stage, which is inside the stage or at its end
    expand    the receiver's half; "0" at the stage's beginning
    tied      last stage that is not the first, of a tied head: {"embedding": [V, E]}
    head      last stage: {"norm": {"scale": [D]}, "output": {"kernel": [D, V]}, ...}

``to_layers`` and ``from_layers`` translate to names that do not depend on the partition
("embed", "layers.3", "compress.4", "expand.4", "tied", "head"). "tied" is a copy of the
table in "embed": the gradient of either is the sum of both stages'.

Shape suffixes: B microbatch, L sequence, D model, V vocabulary.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from models.boundary import Compress, Expand
from models.config import GPTConfig
from models.gpt import Block, Embedding, Head
from models.layers import recomputed
from models.numerics import make_numerics, resolve_dtype
from models.pure import Pure
from models.segments import run_rows

Params = dict[str, Any]

KEEP_EVERYTHING = "everything_saveable"

_EMBED_STREAM, _HEAD_STREAM, _BLOCK_STREAM, _COMPRESS_STREAM, _EXPAND_STREAM = range(5)
_EMBED, _TIED, _TABLE = "embed", "tied", "embedding"
_ENDS, _HALVES = (_EMBED, _TIED, "head"), ("compress", "expand")


@dataclass(frozen=True, slots=True)
class StageFunctions:
    """One stage of the model as pure functions of plain pytrees.

    Attributes:
        init: Seed -> parameters in the parameter dtype; a layer's are a function of
            the seed and the layer alone, whatever stage it is in. Jitted: it is much
            slower operation by operation.
        apply: ``(params, x_BLD) -> y_BLD`` in the compute dtype; the first stage takes
            int32 ``tokens_BL``. Not for the last stage.
        logits: ``(params, x_BLD) -> logits_BLV`` in the parameter dtype. Only for the
            last stage, like the loss.
        loss: ``(params, x_BLD, targets_BL) -> ()``: the sum of the cross entropy over
            the targets that are not negative, in the parameter dtype. Only for the
            last stage; it takes ``tokens_BL`` when it is also the first.
        is_first: Whether the stage embeds tokens.
        is_last: Whether the stage takes the loss.
        tied: Path of the parameter that another stage has a copy of; None if there is
            none.
    """

    init: Callable[[int], Params]
    apply: Callable[[Params, jax.Array], jax.Array]
    logits: Callable[[Params, jax.Array], jax.Array]
    loss: Callable[[Params, jax.Array, jax.Array], jax.Array]
    is_first: bool
    is_last: bool
    tied: tuple[str, str] | None


def make_stage(
    config: GPTConfig,
    first_layer: int,
    num_layers: int,
    remat: str = KEEP_EVERYTHING,
    mesh: Mesh | None = None,
) -> StageFunctions:
    """Builds the stage of blocks ``first_layer`` to ``first_layer + num_layers - 1``.

    Parameters may be masters or what ``cast_params`` made of them: the result is the
    same. At a cut the stages have ``config.width_after`` channels.

    Args:
        remat: What each application of a block keeps for its backward pass, beside its
            input: the name of one of ``jax.checkpoint_policies``. What is cheap to do
            again (``layers.recomputed``) is not kept by "everything_saveable" either.
        mesh: Devices that share the work (``sharding.py``); all but ``init`` then take
            parameters in the order of ``sharding.group_heads``.

    Raises:
        ValueError: float64 is asked for while jax's 64-bit mode is off.
    """
    end = first_layer + num_layers
    assert 0 <= first_layer < end <= config.num_layers, (first_layer, num_layers)
    is_first, is_last = first_layer == 0, end == config.num_layers
    table_of_head = (_EMBED if is_first else _TIED), _TABLE
    is_tied_apart = config.tied_head and is_first != is_last
    numerics = make_numerics(config, mesh)
    embed, block, head, compress, expand = (
        Pure.of(module, config, numerics)
        for module in (Embedding, Block, Head, Compress, Expand)
    )
    apply_block = block.apply
    if remat != KEEP_EVERYTHING:
        policy = getattr(jax.checkpoint_policies, remat)
        apply_block = recomputed(block.apply, policy=policy)
    compressed, expanded = boundaries_of(config, first_layer, num_layers)
    interior = [place for place in compressed if place < num_layers]

    def init(seed: int) -> Params:
        key = jax.random.key(seed)
        block_key = jax.random.fold_in(key, _BLOCK_STREAM)
        layers = jnp.arange(first_layer, end)
        keys = jax.vmap(lambda layer: jax.random.fold_in(block_key, layer))(layers)
        params = {"blocks": jax.vmap(block.init)(keys)}
        if is_first:
            params[_EMBED] = embed.init(jax.random.fold_in(key, _EMBED_STREAM))
        elif is_tied_apart:
            embedding = embed.init(jax.random.fold_in(key, _EMBED_STREAM))
            params[_TIED] = tied_layer(embedding)
        if is_last:
            params["head"] = head.init(jax.random.fold_in(key, _HEAD_STREAM))
        for name, half, places, stream in (
            ("compress", compress, compressed, _COMPRESS_STREAM),
            ("expand", expand, expanded, _EXPAND_STREAM),
        ):
            half_key = jax.random.fold_in(key, stream)
            if places:
                params[name] = {
                    str(place): half.init(
                        jax.random.fold_in(half_key, first_layer + place)
                    )
                    for place in places
                }
        return params

    def repeated(layer: Params, x_BLD: jax.Array) -> jax.Array:
        if config.block_repeats == 1:
            return apply_block(layer, x_BLD)
        return jax.lax.scan(
            lambda x_BLD, _: (apply_block(layer, x_BLD), None),
            x_BLD,
            length=config.block_repeats,
        )[0]

    def run(blocks: Params | tuple[Params, ...], x_BLD: jax.Array) -> jax.Array:
        if isinstance(blocks, tuple):
            return functools.reduce(lambda x, layer: repeated(layer, x), blocks, x_BLD)
        return jax.lax.scan(
            lambda x_BLD, layer: (repeated(layer, x_BLD), None), x_BLD, blocks
        )[0]

    def run_between(start: int, stop: int, blocks: Any, x_BLD: jax.Array) -> jax.Array:
        if isinstance(blocks, tuple):
            return run(blocks[start:stop], x_BLD)
        return run_rows(run, (start, stop), blocks, x_BLD)

    def trunk(params: Params, x: jax.Array) -> jax.Array:
        x_BLD = embed.apply(params["embed"], x) if is_first else x
        x_BLD = x_BLD.astype(numerics.compute)
        if not (compressed or expanded):
            return run(params["blocks"], x_BLD)
        for start, stop in itertools.pairwise((0, *interior, num_layers)):
            if start in expanded:
                x_BLD = expand.apply(params["expand"][str(start)], x_BLD)
            x_BLD = run_between(start, stop, params["blocks"], x_BLD)
            if stop in compressed:
                x_BLD = compress.apply(params["compress"][str(stop)], x_BLD)
        return x_BLD

    def apply(params: Params, x: jax.Array) -> jax.Array:
        assert not is_last, "the last stage has a loss, not an output"
        return trunk(params, x)

    def logits(params: Params, x: jax.Array) -> jax.Array:
        assert is_last, "only the last stage has logits and a loss"
        layer, name = table_of_head
        table = [params[layer][name]] if config.tied_head else []
        return head.apply(params["head"], trunk(params, x), *table)

    def loss(params: Params, x: jax.Array, targets_BL: jax.Array) -> jax.Array:
        return cross_entropy(logits(params, x), targets_BL)

    tied = table_of_head if is_tied_apart else None
    return StageFunctions(jax.jit(init), apply, logits, loss, is_first, is_last, tied)


def tied_layer(embed: Params) -> Params:
    """The layer "tied", from the layer "embed" or a tree like it."""
    return {_TABLE: embed[_TABLE]}


def boundaries_of(
    config: GPTConfig, first_layer: int, num_layers: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """After how many of its own blocks a stage compresses, and after how many expands.

    Stages of one size with equal answers differ in nothing but their parameters.
    """
    inside = [place - first_layer for place in config.boundaries]
    compressed = tuple(place for place in inside if 0 < place <= num_layers)
    expanded = tuple(place for place in inside if 0 <= place < num_layers)
    return compressed, () if config.boundary == "norm" else expanded


def cross_entropy(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
    """Sum of the cross entropy over the targets that are not negative.

    A target outside the vocabulary gives NaN.
    """
    losses_BL = optax.softmax_cross_entropy_with_integer_labels(
        logits_BLV, jnp.maximum(targets_BL, 0)
    )
    return jnp.sum(losses_BL, where=targets_BL >= 0)


def cast_params(config: GPTConfig, params: Params) -> Params:
    """Casts the matrices to the compute dtype, as ``apply`` would do at every call.

    Norms stay as they are, and so do biases, which are small, and the embedding's
    tables (``Embedding`` says why), also where one is the head's matrix as well.
    """
    compute = resolve_dtype(config)
    return jax.tree.map_with_path(
        lambda path, leaf: leaf.astype(compute) if _name(path) == "kernel" else leaf,
        params,
    )


def matrix_mask(params: Params) -> Params:
    """True for matrices and the embedding's tables, False for norms and biases.

    Weight decay goes by this and not by rank: stacked scales have two axes as well. The
    table of learned positions decays, as it did in SWARM's prototype.
    """
    return jax.tree.map_with_path(
        lambda path, _: _name(path) not in ("scale", "bias"), params
    )


def to_layers(params: Params, first_layer: int) -> dict[str, Any]:
    """Splits a stage's parameters, or a tree like them, by layer.

    Args:
        params: Tree with the top level of a stage's parameters.
        first_layer: The first of its blocks, counted over the whole model.

    Returns:
        "layers.N" for each block, "embed", "tied" and "head" where the stage has them,
        and "compress.N" and "expand.N" for the boundary after the model's first N
        blocks.
    """
    layers = {name: params[name] for name in _ENDS if name in params}
    for index in range(len(jax.tree.leaves(params["blocks"])[0])):
        layers[f"layers.{first_layer + index}"] = jax.tree.map(
            lambda leaf, index=index: leaf[index], params["blocks"]
        )
    for name in _HALVES:
        for place, tree in params.get(name, {}).items():
            layers[f"{name}.{first_layer + int(place)}"] = tree
    return layers


def from_layers(layers: Mapping[str, Any]) -> Params:
    """The inverse of ``to_layers``; numpy arrays stay on the host."""
    params = {name: layers[name] for name in _ENDS if name in layers}
    numbered: dict[str, dict[int, Any]] = {}
    for name in layers.keys() - params.keys():
        kind, number = name.split(".")
        numbered.setdefault(kind, {})[int(number)] = layers[name]
    blocks = [tree for _, tree in sorted(numbered["layers"].items())]
    first = min(numbered["layers"])
    assert set(numbered["layers"]) == set(range(first, first + len(blocks))), first
    params["blocks"] = jax.tree.map(_stack, *blocks)
    for kind in numbered.keys() - {"layers"}:
        halves = sorted(numbered[kind].items())
        params[kind] = {str(number - first): tree for number, tree in halves}
    return params


def _name(path: tuple[Any, ...]) -> str:
    return path[-1].key


def _stack(*leaves: Any) -> Any:
    host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    return np.stack(leaves) if host else jnp.stack(leaves)
