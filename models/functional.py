"""The model as pure functions of plain pytrees, one stage at a time.

A stage holds a contiguous run of blocks; the first also embeds tokens, the last also
takes the loss. Its parameters are nested dicts of arrays::

    embed   first stage: {"embedding": [V, D]}
    blocks  the leaves of a block, stacked over the stage's blocks: [n, ...]
    head    last stage: {"norm": {"scale": [D]}, "output": {"kernel": [D, V]}}

``to_layers`` and ``from_layers`` translate to names that do not depend on the partition
("embed", "layers.3", "head"). This is the only file that splits and merges NNX modules.

Shape suffixes: B microbatch, L sequence, D model, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from models.config import GPTConfig
from models.gpt import Block, Embedding, Head, Numerics

Params = dict[str, Any]

_EMBED_STREAM, _HEAD_STREAM, _BLOCK_STREAM = range(3)


@dataclass(frozen=True, slots=True)
class StageFunctions:
    """One stage of the model as pure functions of plain pytrees.

    Attributes:
        init: Seed -> parameters in the parameter dtype; a layer's are a function of
            the seed and the layer alone, whatever stage it is in. Jitted: it is much
            slower operation by operation.
        apply: ``(params, x_BLD) -> y_BLD`` in the compute dtype; the first stage takes
            int32 ``tokens_BL``. Not for the last stage.
        loss: ``(params, x_BLD, targets_BL) -> ()``: the sum of the cross entropy over
            the targets that are not negative, in the parameter dtype. Only for the
            last stage; it takes ``tokens_BL`` when it is also the first.
        is_first: Whether the stage embeds tokens.
        is_last: Whether the stage takes the loss.
    """

    init: Callable[[int], Params]
    apply: Callable[[Params, jax.Array], jax.Array]
    loss: Callable[[Params, jax.Array, jax.Array], jax.Array]
    is_first: bool
    is_last: bool


def make_stage(config: GPTConfig, first_layer: int, num_layers: int) -> StageFunctions:
    """Builds the stage of blocks ``first_layer`` to ``first_layer + num_layers - 1``.

    Parameters may be masters or what ``cast_params`` made of them: the result is the
    same.

    Raises:
        ValueError: float64 is asked for while jax's 64-bit mode is off.
    """
    end = first_layer + num_layers
    assert 0 <= first_layer < end <= config.num_layers, (first_layer, num_layers)
    is_first, is_last = first_layer == 0, end == config.num_layers
    numerics = make_numerics(config)
    embed, block, head = (
        _Pure.of(module, config, numerics) for module in (Embedding, Block, Head)
    )

    def init(seed: int) -> Params:
        key = jax.random.key(seed)
        block_key = jax.random.fold_in(key, _BLOCK_STREAM)
        layers = jnp.arange(first_layer, end)
        keys = jax.vmap(lambda layer: jax.random.fold_in(block_key, layer))(layers)
        params = {"blocks": jax.vmap(block.init)(keys)}
        if is_first:
            params["embed"] = embed.init(jax.random.fold_in(key, _EMBED_STREAM))
        if is_last:
            params["head"] = head.init(jax.random.fold_in(key, _HEAD_STREAM))
        return params

    def trunk(params: Params, x: jax.Array) -> jax.Array:
        x_BLD = embed.apply(params["embed"], x) if is_first else x
        return jax.lax.scan(
            lambda x_BLD, layer: (block.apply(layer, x_BLD), None),
            x_BLD.astype(numerics.compute),
            params["blocks"],
        )[0]

    def apply(params: Params, x: jax.Array) -> jax.Array:
        assert not is_last, "the last stage has a loss, not an output"
        return trunk(params, x)

    def loss(params: Params, x: jax.Array, targets_BL: jax.Array) -> jax.Array:
        assert is_last, "only the last stage has a loss"
        return cross_entropy(head.apply(params["head"], trunk(params, x)), targets_BL)

    return StageFunctions(jax.jit(init), apply, loss, is_first, is_last)


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

    Norm scales and the embedding table stay as they are (``Embedding`` says why).
    """
    compute = resolve_dtype(config)
    return jax.tree.map_with_path(
        lambda path, leaf: leaf.astype(compute) if _name(path) == "kernel" else leaf,
        params,
    )


def matrix_mask(params: Params) -> Params:
    """True for matrices and the embedding table, False for norm scales.

    Weight decay goes by this and not by rank: stacked scales have two axes as well.
    """
    return jax.tree.map_with_path(lambda path, _: _name(path) != "scale", params)


def to_layers(params: Params, first_layer: int) -> dict[str, Any]:
    """Splits a stage's parameters, or a tree like them, by layer.

    Args:
        params: Tree with the top level of a stage's parameters.
        first_layer: The first of its blocks, counted over the whole model.

    Returns:
        "layers.N" for each block, and "embed" and "head" where the stage has them.
    """
    layers = {name: params[name] for name in ("embed", "head") if name in params}
    for index in range(len(jax.tree.leaves(params["blocks"])[0])):
        layers[f"layers.{first_layer + index}"] = jax.tree.map(
            lambda leaf, index=index: leaf[index], params["blocks"]
        )
    return layers


def from_layers(layers: Mapping[str, Any]) -> Params:
    """The inverse of ``to_layers``; numpy arrays stay on the host."""
    params = {name: layers[name] for name in ("embed", "head") if name in layers}
    numbers = sorted(
        int(name.removeprefix("layers.")) for name in layers if name not in params
    )
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), numbers
    blocks = [layers[f"layers.{number}"] for number in numbers]
    params["blocks"] = jax.tree.map(_stack, *blocks)
    return params


def resolve_dtype(config: GPTConfig, platform: str | None = None) -> np.dtype:
    """The compute dtype on "cpu", "gpu" or "tpu"; by default, where this runs."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    if (platform or jax.default_backend()) in ("gpu", "tpu"):
        return jnp.dtype("bfloat16")
    return jnp.dtype(config.parameter_dtype)


def make_numerics(config: GPTConfig) -> Numerics:
    """Chooses dtypes and the attention kernel for this process's device.

    Raises:
        ValueError: float64 is asked for while jax's 64-bit mode is off.
    """
    compute = resolve_dtype(config)
    parameter = jnp.dtype(config.parameter_dtype)
    if "float64" in (compute, parameter) and not jax.config.jax_enable_x64:
        raise ValueError(
            f"model.compute_dtype={config.compute_dtype!r} and model.parameter_dtype="
            f"{config.parameter_dtype!r} need 64-bit mode: set JAX_ENABLE_X64=1"
        )
    flash = compute == "bfloat16" and _has_flash_kernel(config)
    return Numerics(compute=compute, parameter=parameter, flash=flash)


@dataclass(frozen=True, slots=True)
class _Pure:
    """A module as ``init(key) -> tree`` and ``apply(tree, x) -> y``."""

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]

    @classmethod
    def of(cls, module: type, config: GPTConfig, numerics: Numerics) -> "_Pure":
        def build(key: jax.Array):
            return module(config, numerics, nnx.Rngs(params=key))

        def init(key: jax.Array) -> Params:
            return nnx.to_pure_dict(nnx.state(build(key)))

        graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(jax.random.key(0))))

        def apply(params: Params, x: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params)(x)

        return cls(init, apply)


def _has_flash_kernel(config: GPTConfig) -> bool:
    """cuDNN's kernel wants an NVIDIA card since Ampere and certain head sizes."""
    capability = getattr(jax.devices()[0], "compute_capability", "")
    if not capability[:1].isdigit() or float(capability) < 8:
        return False
    head_size = config.model_dim // config.num_heads
    return head_size % 8 == 0 and head_size <= (256 if float(capability) >= 9 else 128)


def _name(path: tuple[Any, ...]) -> str:
    return path[-1].key


def _stack(*leaves: Any) -> Any:
    host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    return np.stack(leaves) if host else jnp.stack(leaves)
