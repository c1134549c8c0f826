"""The dynamic 8-bit map: codes with an exponent, as bitsandbytes has them.

Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (ICLR 2022), sections
2.1 and 2.2: values are divided by the largest magnitude of their block and replaced by
the nearest of 256 numbers, which lie in seven decades, each with twice as many as the
one below it. So small values keep some digits beside a block's outliers.

Blocks are 4096 values of the flattened array, as in that library; the last one may be
shorter. Where a token is narrower than that, its codes depend on its neighbours', later
ones too.

Each code is the nearest one to the quotient as float32 has it. The map has 1 but not -1
(its lowest number is -0.993), so a block whose largest magnitude is negative loses
0.7 % of that.
"""

import jax
import jax.numpy as jnp
import numpy as np

from swarm_jax.stage.codec_blocks import SMALLEST_SCALE, largest_magnitude

# Shape suffixes: B microbatch, L sequence, D model dimension, N blocks, P values of a
# block.

BLOCK = 4096
DECADES = 7


def specs(shape_BLD: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """dtype name and shape of codes and scales."""
    values = int(np.prod(shape_BLD))
    return ("uint8", shape_BLD), ("float32", (-(-values // BLOCK),))


def encode(x_BLD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes and scales of float32 values."""
    x_NP = _split(x_BLD)
    scale_N = jnp.maximum(largest_magnitude(x_NP), SMALLEST_SCALE)
    codes_NP = _nearest(x_NP / scale_N[:, None])
    return _join(codes_NP, x_BLD.shape), scale_N


def decode(codes_BLD: jax.Array, scale_N: jax.Array) -> jax.Array:
    """Values in float32."""
    values_NP = jnp.asarray(MAP).at[_split(codes_BLD)].get(mode="promise_in_bounds")
    return _join(values_NP * scale_N[:, None], codes_BLD.shape)


def _dynamic_map() -> np.ndarray:
    """The 256 numbers, ascending, in float32.

    In decade ``10**-e``, e = 6 to 0, the stretch from 0.1 to 1 is cut into ``2**(6-e)``
    equal parts; their middles, of both signs, are the numbers; and then 0 and 1.
    """
    positive = []
    for decade in range(DECADES):
        bounds = np.linspace(0.1, 1.0, 2**decade + 1)
        middles = (bounds[:-1] + bounds[1:]) / 2
        positive.append(10.0 ** (decade + 1 - DECADES) * middles)
    magnitudes = np.concatenate(positive)
    return np.sort([*-magnitudes, 0.0, *magnitudes, 1.0]).astype(np.float32)


def _thresholds(numbers: np.ndarray) -> np.ndarray:
    """The least float32 that is no nearer to a number than to the next one."""
    exact = (numbers[:-1].astype(np.float64) + numbers[1:]) / 2
    rounded = exact.astype(np.float32)
    return np.where(rounded < exact, np.nextafter(rounded, np.float32(1)), rounded)


def _first_codes(thresholds: np.ndarray) -> np.ndarray:
    """The lowest code among the float32s that begin with the same 16 bits.

    There is never more than one threshold among them: so it is this one or the next.
    """
    heads = np.arange(2**16, dtype=np.uint32) << 16
    ends = np.stack([heads, heads | 0xFFFF]).view(np.float32)
    lowest, highest = (
        np.searchsorted(thresholds, end, side="right")
        for end in (ends.min(axis=0), ends.max(axis=0))
    )
    is_number = ~np.isnan(ends).any(axis=0)
    assert (highest - lowest)[is_number].max() <= 1
    return lowest.astype(np.uint8)


MAP = _dynamic_map()
THRESHOLDS = _thresholds(MAP)
FIRST_CODES = _first_codes(THRESHOLDS)
NEXT_THRESHOLD = np.append(THRESHOLDS, np.float32(np.inf))
"""By code: from there on it is the next one."""


def _nearest(quotient: jax.Array) -> jax.Array:
    """The codes of quotients in -1 to 1: two look-ups and a comparison."""
    head = jax.lax.bitcast_convert_type(quotient, jnp.uint32) >> 16
    first = jnp.asarray(FIRST_CODES).at[head].get(mode="promise_in_bounds")
    threshold = jnp.asarray(NEXT_THRESHOLD).at[first].get(mode="promise_in_bounds")
    return first + (quotient >= threshold).astype("uint8")


def _split(x_BLD: jax.Array) -> jax.Array:
    blocks = -(-x_BLD.size // BLOCK)
    padded = jnp.pad(x_BLD.ravel(), (0, blocks * BLOCK - x_BLD.size))
    return padded.reshape(blocks, BLOCK)


def _join(x_NP: jax.Array, shape_BLD: tuple[int, ...]) -> jax.Array:
    return x_NP.ravel()[: int(np.prod(shape_BLD))].reshape(shape_BLD)
