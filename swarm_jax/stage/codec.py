"""What travels between stages: an activation as one or more raw arrays.

A codec works inside ``jit``, so that what leaves the device is already as small as it
will be on the wire.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

# Shape suffixes: B microbatch, L sequence, D model dimension.

Specs = tuple[tuple[str, tuple[int, ...]], ...]
"""dtype name and shape of each array."""

CASTS = ("float32", "bfloat16", "float64")


@dataclass(frozen=True, slots=True)
class Codec:
    """Attributes:
    specs: dtype name and shape of each encoded array.
    encode: ``encode(x_BLD) -> arrays``; jittable.
    decode: ``decode(arrays) -> x_BLD`` in the dtype that the stages compute in;
        jittable.
    """

    specs: Specs
    encode: Callable[[jax.Array], tuple[jax.Array, ...]]
    decode: Callable[[Sequence[jax.Array]], jax.Array]


def make_codec(wire: str, shape_BLD: tuple[int, ...], dtype: str) -> Codec:
    """The codec named ``wire`` for activations of one shape.

    Args:
        wire: dtype on the wire.
        dtype: dtype of activations inside the stages.

    Raises:
        ValueError: No codec has this name, or it needs 64-bit arrays.
    """
    if wire not in CASTS:
        raise ValueError(f"no codec is named {wire!r}: use one of {CASTS}")
    if wire == "float64" and not jax.config.jax_enable_x64:
        raise ValueError("a float64 wire needs 64-bit arrays: set JAX_ENABLE_X64=1")
    return Codec(
        specs=((wire, tuple(shape_BLD)),),
        encode=lambda x_BLD: (x_BLD.astype(wire),),
        decode=lambda arrays: jnp.asarray(arrays[0]).astype(dtype),
    )
