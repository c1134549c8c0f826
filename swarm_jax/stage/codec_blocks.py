"""What the blockwise codecs share: the largest magnitude of each block."""

import jax
import jax.numpy as jnp

# Shape suffixes: P values of a block; the axes before it are named by the caller.

LARGEST = 2.0**126
"""What a block's values stay below (8.5e37). Decoded they are finite, in bfloat16 too,
and one over their scale, which is what XLA multiplies with, is not taken for zero."""

SMALLEST_SCALE = 2.0**-126
"""The smallest normal float32 (1.2e-38): less may be taken for zero."""


def largest_magnitude(x_P: jax.Array) -> jax.Array:
    """Of each block (last axis), in float32.

    It is infinite for a block with a value that is not finite, or not below
    ``LARGEST``. An 8-bit code has no room for such a value; so the scale tells of it,
    and what is decoded with that scale is not finite.
    """
    magnitude_P = jnp.abs(x_P)
    # The maximum would not tell: on CPU it leaves NaN out.
    is_sound = jnp.all(magnitude_P < LARGEST, axis=-1)
    return jnp.where(is_sound, jnp.max(magnitude_P, axis=-1), jnp.inf)
