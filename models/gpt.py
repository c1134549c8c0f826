"""Decoder-only Transformer as Flax NNX modules: embedding, block, head.

Pre-norm (RMSNorm), rotary positions, causal attention, GELU or gated feed-forward; no
biases, no dropout. Matrix products run in the compute dtype, norms, softmax and logits
in the norm dtype: float32, or float64 when the parameters are float64.

Shape suffixes: B microbatch, L sequence (M: the keys' side), N tokens of a microbatch,
D model, H heads, K head size, F feed-forward, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from models.config import GPTConfig


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a device computes: frozen, because modules keep it as a static attribute.

    Attributes:
        compute: dtype of matrix products and of the residual stream.
        parameter: dtype of parameters, norms, softmax and logits.
        flash: Whether attention takes cuDNN's fused kernel.
    """

    compute: DTypeLike
    parameter: DTypeLike
    flash: bool = False


def uniform(deviation: float):
    """An initializer with equal bits on every device: uniform, centred on 0.

    Normal draws pass through erfinv, whose last bits depend on the compiler's choices;
    these are random bits, one exact subtraction and one rounded product. They are drawn
    in float32 also for float64 parameters, so that both start from one model.

    Args:
        deviation: Standard deviation.
    """
    width = 2 * deviation * math.sqrt(3)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        draw = jax.random.uniform(key, shape, jnp.float32)
        return ((draw - 0.5) * width).astype(dtype)

    return init


def rotate(x_BLHK: jax.Array, base: float, dtype: DTypeLike) -> jax.Array:
    """Rotary positions (Su et al. 2021, eq. 34), pairing component i with i + K/2.

    The angles are constants, made in float64: in float32 a position of some thousands
    times a frequency has lost its last digits.

    Args:
        x_BLHK: Queries or keys.
        base: Base of the frequencies.
        dtype: dtype of the rotation; the result has that of ``x_BLHK``.
    """
    length, size = x_BLHK.shape[1], x_BLHK.shape[3]
    frequencies_K = base ** (-np.arange(0, size, 2) / size)
    angles_LK = np.arange(length)[:, None] * frequencies_K
    cos = jnp.asarray(np.cos(angles_LK)[None, :, None], dtype)
    sin = jnp.asarray(np.sin(angles_LK)[None, :, None], dtype)
    left, right = jnp.split(x_BLHK.astype(dtype), 2, axis=-1)
    rotated = (left * cos - right * sin, left * sin + right * cos)
    return jnp.concatenate(rotated, axis=-1).astype(x_BLHK.dtype)


def attend(
    q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, numerics: Numerics
) -> jax.Array:
    """Causal attention with scores and softmax in the parameter dtype.

    Written out because ``jax.nn.dot_product_attention`` takes its softmax in float32
    even when everything else is float64; its fused kernel serves ``numerics.flash``.
    """
    if numerics.flash:
        return jax.nn.dot_product_attention(
            q_BLHK, k_BMHK, v_BMHK, is_causal=True, implementation="cudnn"
        )
    return _attend_by_scores(q_BLHK, k_BMHK, v_BMHK, numerics.parameter)


def recomputed(function: Callable, **options) -> Callable:
    """Keeps the function's inputs for the backward pass and nothing from inside it.

    Meant for what is cheap to do again and expensive to keep: a norm's float32 copies
    of the stream, the six arrays inside a GELU, attention's L * L weights. It halves
    the residuals and is faster, also on a CPU, since memory is the limit there.
    """
    return jax.checkpoint(function, prevent_cse=False, **options)


@partial(recomputed, static_argnums=3)
def _attend_by_scores(
    q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, dtype: DTypeLike
) -> jax.Array:
    length, size = q_BLHK.shape[1], q_BLHK.shape[3]
    scores_BHLM = jnp.einsum(
        "blhk,bmhk->bhlm", q_BLHK, k_BMHK, preferred_element_type=dtype
    )
    mask_LM = np.where(np.tri(length, dtype=bool), 0, -np.inf)
    mask_BHLM = jnp.asarray(mask_LM[None, None], dtype)
    weights_BHLM = jax.nn.softmax(scores_BHLM / math.sqrt(size) + mask_BHLM)
    return jnp.einsum("bhlm,bmhk->blhk", weights_BHLM.astype(v_BMHK.dtype), v_BMHK)


class Norm(nnx.RMSNorm):
    """RMSNorm in the parameter dtype, with its result in the compute dtype."""

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        super().__init__(
            config.model_dim,
            epsilon=config.norm_epsilon,
            dtype=numerics.parameter,
            param_dtype=numerics.parameter,
            rngs=rngs,
        )
        self.numerics = numerics

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        normed = super().__call__
        return recomputed(lambda x: normed(x).astype(self.numerics.compute))(x_BLD)


class Matrix(nnx.Linear):
    """Product with a matrix ``kernel`` [inputs, outputs], in the compute dtype.

    Its deviation is ``scale / sqrt(inputs)``, so that a product starts as large as what
    goes in. A fixed 0.02, as in GPT-2, is the same thing at a width of 2,500; at 128 an
    Adam step is so large beside it that two runs that differ in the last bit were a
    thousand times further apart after 50 steps, and 0.35 nats behind.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        numerics: Numerics,
        rngs: nnx.Rngs,
        scale: float = 1.0,
    ):
        super().__init__(
            inputs,
            outputs,
            use_bias=False,
            dtype=numerics.compute,
            param_dtype=numerics.parameter,
            kernel_init=uniform(scale / math.sqrt(inputs)),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Flattens all axes but the last.

        With more of them, the product for the kernel's gradient comes out transposed,
        and on a CPU it takes twice as long.
        """
        y = super().__call__(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], -1)


class Embedding(nnx.Module):
    """A table of token vectors, ``embedding`` [V, D].

    It stays in the parameter dtype also under low-precision compute: the gradients of a
    frequent token are summed one by one, and bfloat16 would lose most of them.
    """

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.model_dim)
        init = uniform(1.0)
        self.embedding = nnx.Param(init(rngs.params(), shape, numerics.parameter))
        self.numerics = numerics

    def __call__(self, tokens_BL: jax.Array) -> jax.Array:
        """Returns x_BLD; a token outside the vocabulary gives NaN, not a neighbour."""
        rows = jnp.asarray(self.embedding[...]).at[tokens_BL]
        x_BLD = rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return x_BLD.astype(self.numerics.compute)


class Attention(nnx.Module):
    """Causal self-attention; ``qkv`` [D, 3 H K] holds queries, keys and values."""

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, scale = config.model_dim, _residual_scale(config)
        self.qkv = Matrix(width, 3 * width, numerics, rngs)
        self.output = Matrix(width, width, numerics, rngs, scale)
        self.num_heads = config.num_heads
        self.rope_base = config.rope_base
        self.numerics = numerics

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        batch, length, width = x_BLD.shape
        split = (batch, length, 3, self.num_heads, width // self.num_heads)
        q_BLHK, k_BLHK, v_BLHK = jnp.unstack(self.qkv(x_BLD).reshape(split), axis=2)
        q_BLHK = rotate(q_BLHK, self.rope_base, self.numerics.parameter)
        k_BLHK = rotate(k_BLHK, self.rope_base, self.numerics.parameter)
        mixed_BLHK = attend(q_BLHK, k_BLHK, v_BLHK, self.numerics)
        return self.output(mixed_BLHK.reshape(x_BLD.shape))


_gelu = recomputed(jax.nn.gelu)


@recomputed
def _gated_gelu(gate_NF: jax.Array, hidden_NF: jax.Array) -> jax.Array:
    return jax.nn.gelu(gate_NF) * hidden_NF


class FeedForward(nnx.Module):
    """GELU (tanh form) of one product, or gated by another (GEGLU, Shazeer 2020)."""

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, hidden = config.model_dim, config.ffn_dim
        self.gated = config.feed_forward == "geglu"
        self.input = Matrix(width, hidden, numerics, rngs)
        if self.gated:
            self.gate = Matrix(width, hidden, numerics, rngs)
        self.output = Matrix(hidden, width, numerics, rngs, _residual_scale(config))

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        # Flat already here: two products that each flatten it keep it twice.
        x_ND = x_BLD.reshape(-1, x_BLD.shape[-1])
        hidden_NF = self.input(x_ND)
        if self.gated:
            hidden_NF = _gated_gelu(self.gate(x_ND), hidden_NF)
        else:
            hidden_NF = _gelu(hidden_NF)
        return self.output(hidden_NF).reshape(x_BLD.shape)


class Block(nnx.Module):
    """One Transformer layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.attention_norm = Norm(config, numerics, rngs)
        self.attention = Attention(config, numerics, rngs)
        self.feed_forward_norm = Norm(config, numerics, rngs)
        self.feed_forward = FeedForward(config, numerics, rngs)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        x_BLD += self.attention(self.attention_norm(x_BLD))
        return x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))


class Head(nnx.Module):
    """Final norm and ``output`` [D, V], a matrix of its own: it is not the embedding.

    The first and the last stage are different peers, so a shared matrix would have to
    cross the network at every step.
    """

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.norm = Norm(config, numerics, rngs)
        self.output = Matrix(config.model_dim, config.vocab_size, numerics, rngs)
        self.numerics = numerics

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """Returns logits_BLV in the parameter dtype."""
        x_ND = self.norm(x_BLD).reshape(-1, x_BLD.shape[-1])
        kernel_DV = jnp.asarray(self.output.kernel[...], self.numerics.compute)
        logits_NV = _wide_product(x_ND, kernel_DV, self.numerics.parameter)
        return logits_NV.reshape(*x_BLD.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _wide_product(x_ND: jax.Array, kernel_DV: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Product whose result is not rounded to the dtype of its factors.

    Its own derivative, because jax's multiplies the float32 gradient with bfloat16
    factors: on an H200 that makes the whole last stage a third slower.
    """
    return jnp.matmul(x_ND, kernel_DV, preferred_element_type=dtype)


def _wide_product_forward(x_ND, kernel_DV, dtype):
    return _wide_product(x_ND, kernel_DV, dtype), (x_ND, kernel_DV)


def _wide_product_backward(dtype, factors, grad_NV):
    x_ND, kernel_DV = factors
    grad_NV = grad_NV.astype(x_ND.dtype)
    return grad_NV @ kernel_DV.T, x_ND.T @ grad_NV


_wide_product.defvjp(_wide_product_forward, _wide_product_backward)


def _residual_scale(config: GPTConfig) -> float:
    """Scale of what writes into the residual stream (GPT-2, section 2.3).

    The stream sums 2 N such outputs, so each is scaled by 1 / sqrt(2 N).
    """
    return 1 / math.sqrt(2 * config.num_layers)
