"""Decoder-only Transformer as Flax NNX modules: embedding, block, head.

Pre-norm, causal, no dropout; ``GPTConfig`` says what there is to choose from.

Shape suffixes: B microbatch, L sequence, N tokens of a microbatch, D model, E table, F
feed-forward, V vocabulary (padded where it is a parameter's).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.attention import Attention
from models.config import GPTConfig
from models.layers import (
    ACTIVATIONS,
    Matrix,
    make_norm,
    recomputed,
    residual_scale,
    rows_from,
    uniform,
    wide_product,
)
from models.numerics import Numerics
from models.sharding import DATA, constrain


class Embedding(nnx.Module):
    """A table of token vectors ``embedding`` [V, E], and of ``positions`` [L, E].

    They stay in the parameter dtype also under low-precision compute: the gradients of
    a frequent token are summed one by one, and bfloat16 would lose most of them.
    """

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        shape = (config.padded_vocab_size, config.table_dim)
        init = uniform(1 / config.embedding_scale)
        self.embedding = nnx.Param(init(rngs.params(), shape, numerics.parameter))
        if config.positions == "learned":
            shape = (config.sequence_length, config.table_dim)
            table_LE = uniform(1.0)(rngs.params(), shape, numerics.parameter)
            self.positions = nnx.Param(table_LE)
        self.normed = config.embedding_norm
        if self.normed:
            self.norm = make_norm(config.table_dim, config, numerics, rngs)
        self.factorised = config.embedding_dim is not None
        if self.factorised:
            sizes = config.table_dim, config.model_dim
            self.projection = Matrix(*sizes, numerics, rngs, bias=config.biases)
        self.vocab_size = config.vocab_size
        self.sequence_length = config.sequence_length
        self.scale = config.embedding_scale
        self.kind = config.positions
        self.numerics = numerics

    def __call__(
        self, tokens_BL: jax.Array, start: jax.Array | None = None
    ) -> jax.Array:
        """Returns x_BLD; a token outside the vocabulary gives NaN, not a neighbour.

        Args:
            start: Position of the first of them in the sequence; None: 0.
        """
        table_VE, length = jnp.asarray(self.embedding[...]), tokens_BL.shape[1]
        # A token of the padding is as far outside as one behind the padding.
        known = tokens_BL < self.vocab_size
        rows = table_VE.at[jnp.where(known, tokens_BL, len(table_VE))]
        x_BLE = rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        if self.scale != 1:
            x_BLE *= self.scale
        if self.kind == "learned":
            x_BLE += rows_from(jnp.asarray(self.positions[...]), start, length)[None]
        if self.kind == "sinusoidal":
            limit = length if start is None else self.sequence_length
            waves_LE = jnp.asarray(sinusoids(limit, x_BLE.shape[2]), x_BLE.dtype)
            x_BLE += rows_from(waves_LE, start, length)[None]
        if self.normed:
            x_BLE = self.norm(x_BLE)
        x_BLE = x_BLE.astype(self.numerics.compute)
        return self.projection(x_BLE) if self.factorised else x_BLE


def sinusoids(length: int, width: int) -> np.ndarray:
    """Positions as sines and cosines in turn (Vaswani et al. 2017, section 3.5).

    Returns:
        waves_LE in float64; the first position is 0.
    """
    exponents_E = np.arange(width) // 2 * 2 / width
    angles_LE = np.arange(length)[:, None] / 10_000.0**exponents_E
    even = np.arange(width) % 2 == 0
    return np.where(even, np.sin(angles_LE), np.cos(angles_LE))


class FeedForward(nnx.Module):
    """An activation of one product, or that of another times it (Shazeer 2020)."""

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, hidden = config.model_dim, config.ffn_dim
        self.kind = config.feed_forward
        self.input = Matrix(width, hidden, numerics, rngs, bias=config.biases)
        self.gated = config.gated
        if self.gated:
            self.gate = Matrix(width, hidden, numerics, rngs, bias=config.biases)
        self.output = Matrix(
            hidden, width, numerics, rngs, residual_scale(config), config.biases
        )

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        # Flat already here: two products that each flatten it keep it twice.
        x_ND = x_BLD.reshape(-1, x_BLD.shape[-1])
        hidden_NF, activation = self.input(x_ND), ACTIVATIONS[self.kind]
        if self.gated:
            product = recomputed(lambda gate_NF, x_NF: activation(gate_NF) * x_NF)
            hidden_NF = product(self.gate(x_ND), hidden_NF)
        else:
            hidden_NF = recomputed(activation)(hidden_NF)
        return self.output(hidden_NF).reshape(x_BLD.shape)


class Block(nnx.Module):
    """One Transformer layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.attention_norm = make_norm(config.model_dim, config, numerics, rngs)
        self.attention = Attention(config, numerics, rngs)
        self.feed_forward_norm = make_norm(config.model_dim, config, numerics, rngs)
        self.feed_forward = FeedForward(config, numerics, rngs)
        self.mesh = numerics.mesh

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        attended_BLD = self.attention(self.attention_norm(x_BLD))
        x_BLD += constrain(self.mesh, attended_BLD, DATA)
        fed_BLD = self.feed_forward(self.feed_forward_norm(x_BLD))
        return x_BLD + constrain(self.mesh, fed_BLD, DATA)


class Head(nnx.Module):
    """Final norm, the way down to E where there is one, and ``output``."""

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        width = config.model_dim
        self.norm = make_norm(width, config, numerics, rngs)
        self.factorised = config.head == "factorised"
        if self.factorised:
            self.kind = config.feed_forward
            sizes = width, config.table_dim
            self.input = Matrix(*sizes, numerics, rngs, bias=config.biases)
            self.output_norm = make_norm(config.table_dim, config, numerics, rngs)
            width = config.table_dim
        self.output = Output(width, config, numerics, rngs)

    def __call__(self, x_BLD: jax.Array, table_VD: jax.Array | None = None):
        """Returns logits_BLV in the parameter dtype, without those of the padding.

        Args:
            table_VD: The embedding table, for a tied head.
        """
        x_BLD = self.norm(x_BLD)
        if self.factorised:
            activation = recomputed(ACTIVATIONS[self.kind])
            x_BLD = self.output_norm(activation(self.input(x_BLD)))
        return self.output(x_BLD, table_VD)


class Output(nnx.Module):
    """``kernel`` [D, V] unless the head is tied, and ``bias`` [V] if there is one."""

    def __init__(
        self, width: int, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs
    ):
        shape = (width, config.padded_vocab_size)
        self.tied = config.tied_head
        if not self.tied:
            init = uniform(1 / math.sqrt(width))
            self.kernel = nnx.Param(init(rngs.params(), shape, numerics.parameter))
        self.biased = config.head_bias
        if self.biased:
            self.bias = nnx.Param(jnp.zeros(shape[1:], numerics.parameter))
        self.vocab_size = config.vocab_size
        self.numerics = numerics

    def __call__(self, x_BLD: jax.Array, table_VD: jax.Array | None) -> jax.Array:
        """Returns logits_BLV."""
        x_ND = x_BLD.reshape(-1, x_BLD.shape[-1])
        kernel_DV = table_VD.T if self.tied else self.kernel[...]
        kernel_DV = jnp.asarray(kernel_DV, self.numerics.compute)
        logits_NV = wide_product(x_ND, kernel_DV, self.numerics.parameter)
        if self.biased:
            logits_NV += jnp.asarray(self.bias[...])[None]
        logits_NV = logits_NV[:, : self.vocab_size]
        return logits_NV.reshape(*x_BLD.shape[:-1], -1)
