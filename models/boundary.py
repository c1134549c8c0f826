"""What stands between stages, as a part of the model: norms and compressors.

Each replaces the whole residual stream: there is no way around it. Where the model is
cut at one, the sender's half ends the stage before the cut and the receiver's half
begins the one after it (Ryabinin et al. 2023, section on compression-aware
architectures); what is between them, with D / k channels, travels.

Shape suffixes: B microbatch, L sequence, D model, C compressed (D / k), K factor.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import GPTConfig
from models.layers import Matrix, make_norm
from models.numerics import Numerics

_LINEAR = 1 / math.sqrt(3)
"""``scale`` of ``Matrix`` that gives +-1 / sqrt(inputs): what these layers start with
in the paper, weights and biases alike (``torch.nn.Linear``)."""


class Compress(nnx.Module):
    """The sender's half: norm; then matrix or maximum, and a norm of what is left.

    Its matrix has a bias whatever ``config.biases`` says, and so has ``Expand``'s.
    """

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, narrow = config.model_dim, config.model_dim // config.boundary_factor
        self.kind = config.boundary
        self.norm = make_norm(width, config, numerics, rngs)
        if self.kind == "norm":
            return
        if self.kind == "bottleneck":
            self.input = Matrix(width, narrow, numerics, rngs, _LINEAR, True, _LINEAR)
        self.output_norm = make_norm(narrow, config, numerics, rngs)
        self.narrow = narrow

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """Returns x_BLC."""
        x_BLD = self.norm(x_BLD)
        if self.kind == "norm":
            return x_BLD
        if self.kind == "bottleneck":
            return self.output_norm(self.input(x_BLD))
        x_BLCK = x_BLD.reshape(*x_BLD.shape[:2], self.narrow, -1)
        return self.output_norm(_largest(x_BLCK))


def _largest(x_BLCK: jax.Array) -> jax.Array:
    """The largest of the last axis; its gradient goes to that place alone.

    That of ``jnp.max`` goes to all that are equal to the maximum, divided by their
    number. A compiler that computes the norm before it once more for the backward pass,
    with another last bit, finds none that is, and gives NaN.
    """
    places_K = jnp.arange(x_BLCK.shape[-1])[None, None, None]
    chosen_BLCK = jnp.argmax(x_BLCK, axis=-1, keepdims=True) == places_K
    return jnp.sum(x_BLCK, axis=-1, where=chosen_BLCK)


class Expand(nnx.Module):
    """The receiver's half of what compresses: a matrix back to D channels."""

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, narrow = config.model_dim, config.model_dim // config.boundary_factor
        self.output = Matrix(narrow, width, numerics, rngs, _LINEAR, True, _LINEAR)

    def __call__(self, x_BLC: jax.Array) -> jax.Array:
        return self.output(x_BLC)
