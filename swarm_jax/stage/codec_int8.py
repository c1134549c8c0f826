"""Blockwise linear 8-bit codes: integers from -127 to 127 times the block's scale.

Blocks lie inside one token's values, so no token's code depends on another token. They
have 128 to 255 values, so that a value takes 1.016 bytes at most; a width below 128 is
one block. The scale is a bfloat16: that has float32's range, makes errors at most 0.4 %
larger, and leaves room for blocks of half the size.

The error of a value is at most half its block's scale, which is the largest magnitude
in the block divided by 127 and rounded. No scale is below 1.2e-38. Encoding what was
decoded gives the same codes and scales. Ties round to even.
"""

import jax
import jax.numpy as jnp

from swarm_jax.stage.codec_blocks import SMALLEST_SCALE, largest_magnitude

# Shape suffixes: B microbatch, L sequence, D model dimension, N blocks of a token,
# P values of a block.

MIN_BLOCK = 128
LARGEST_CODE = 127

_BFLOAT16 = jnp.finfo("bfloat16")


def specs(shape_BLD: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """dtype name and shape of codes and scales."""
    *shape_BL, width = shape_BLD
    return ("int8", shape_BLD), ("bfloat16", (*shape_BL, _blocks(width)[0]))


def encode(x_BLD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes and scales of float32 values."""
    x_BLNP = _split(x_BLD)
    scale_BLN = jnp.maximum(largest_magnitude(x_BLNP) / LARGEST_CODE, SMALLEST_SCALE)
    # Not a cast: XLA would divide by the scale as it was before.
    scale_BLN = jax.lax.reduce_precision(scale_BLN, _BFLOAT16.nexp, _BFLOAT16.nmant)
    codes_BLNP = jnp.rint(x_BLNP / scale_BLN[..., None]).astype("int8")
    return _join(codes_BLNP, x_BLD.shape[-1]), scale_BLN.astype("bfloat16")


def decode(codes_BLD: jax.Array, scale_BLN: jax.Array) -> jax.Array:
    """Values in float32."""
    scale_BLN = scale_BLN.astype("float32")
    values_BLNP = _split(codes_BLD).astype("float32") * scale_BLN[..., None]
    return _join(values_BLNP, codes_BLD.shape[-1])


def _blocks(width: int) -> tuple[int, int]:
    """Number and size of a token's blocks; the last one may be shorter."""
    size = -(-width // max(1, width // MIN_BLOCK))
    return -(-width // size), size


def _split(x_BLD: jax.Array) -> jax.Array:
    *shape_BL, width = x_BLD.shape
    count, size = _blocks(width)
    missing = count * size - width
    padded = jnp.pad(x_BLD, [(0, 0)] * len(shape_BL) + [(0, missing)])
    return padded.reshape(*shape_BL, count, size)


def _join(x_BLNP: jax.Array, width: int) -> jax.Array:
    *shape_BL, count, size = x_BLNP.shape
    return x_BLNP.reshape(*shape_BL, count * size)[..., :width]
