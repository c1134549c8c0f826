"""What the blockwise codecs share: the largest magnitude of each block."""

import jax
import jax.numpy as jnp

# Shape suffixes: P values of a block; the axes before it are named by the caller.

LARGEST = 2.0**127
"""What a block's values stay below; decoded, they are finite in bfloat16 too."""

SMALLEST_SCALE = float(jnp.finfo("float32").tiny)
"""Devices may take what is smaller than this (1.2e-38) for zero."""


def largest_magnitude(x_P: jax.Array) -> jax.Array:
    """Of each block (last axis), in float32.

    It is infinite for a block with a value that is not finite, or not below
    ``LARGEST``. An 8-bit code has no room for such a value; so the scale tells of it,
    and what is decoded with that scale is not finite.
    """
    magnitude = jnp.max(jnp.abs(x_P), axis=-1)  # NaN if there is one
    return jnp.where(magnitude < LARGEST, magnitude, jnp.inf)
