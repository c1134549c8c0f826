"""Causal self-attention with grouped queries and rotary positions.

Scores and softmax are in the parameter dtype: float32, or float64.

Shape suffixes: B microbatch, L sequence (M: the keys' side), D model, H heads, K head
size.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from models.config import GPTConfig
from models.layers import Matrix, recomputed, residual_scale, rows_from
from models.numerics import Numerics
from models.sharding import head_groups, split_heads


def rotate(
    x_BLHK: jax.Array,
    base: float,
    dtype: DTypeLike,
    start: jax.Array | None = None,
    limit: int | None = None,
) -> jax.Array:
    """Rotary positions (Su et al. 2021, eq. 34), pairing component i with i + K/2.

    The angles are constants, made in float64: in float32 a position of some thousands
    times a frequency has lost its last digits.

    Args:
        x_BLHK: Queries or keys.
        base: Base of the frequencies.
        dtype: dtype of the rotation; the result has that of ``x_BLHK``.
        start: Position of the first of them; None: 0.
        limit: With ``start``: no position reaches it.
    """
    length, size = x_BLHK.shape[1], x_BLHK.shape[3]
    frequencies_K = base ** (-np.arange(0, size, 2) / size)
    angles_LK = np.arange(limit or length)[:, None] * frequencies_K
    cos, sin = (
        rows_from(jnp.asarray(wave(angles_LK), dtype), start, length)[None, :, None]
        for wave in (np.cos, np.sin)
    )
    left, right = jnp.split(x_BLHK.astype(dtype), 2, axis=-1)
    rotated = (left * cos - right * sin, left * sin + right * cos)
    return jnp.concatenate(rotated, axis=-1).astype(x_BLHK.dtype)


def attend(
    q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, numerics: Numerics
) -> jax.Array:
    """Causal attention; keys and values may have fewer heads.

    Query head ``h`` of H then looks at head ``h * H_kv // H`` of theirs (Ainslie et al.
    2023). Written out because ``jax.nn.dot_product_attention`` takes its softmax in
    float32 even when everything else is float64; its fused kernel serves
    ``numerics.flash``.
    """
    if numerics.flash:
        return jax.nn.dot_product_attention(
            q_BLHK, k_BMHK, v_BMHK, is_causal=True, implementation="cudnn"
        )
    return _attend_by_scores(q_BLHK, k_BMHK, v_BMHK, numerics.parameter)


@partial(recomputed, static_argnums=3)
def _attend_by_scores(
    q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, dtype: DTypeLike
) -> jax.Array:
    length, heads, size = q_BLHK.shape[1:]
    if (group := heads // k_BMHK.shape[2]) > 1:
        k_BMHK, v_BMHK = (jnp.repeat(x, group, axis=2) for x in (k_BMHK, v_BMHK))
    scores_BHLM = jnp.einsum(
        "blhk,bmhk->bhlm", q_BLHK, k_BMHK, preferred_element_type=dtype
    )
    mask_LM = np.where(np.tri(length, dtype=bool), 0, -np.inf)
    mask_BHLM = jnp.asarray(mask_LM[None, None], dtype)
    weights_BHLM = jax.nn.softmax(scores_BHLM / math.sqrt(size) + mask_BHLM)
    return jnp.einsum("bhlm,bmhk->blhk", weights_BHLM.astype(v_BMHK.dtype), v_BMHK)


class Attention(nnx.Module):
    """Causal self-attention; ``qkv`` [D, (H + 2 H_kv) K] is queries, keys, values."""

    def __init__(self, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, heads = config.model_dim, config.num_heads + 2 * config.kv_heads
        self.qkv = Matrix(
            width,
            heads * config.head_dim,
            numerics,
            rngs,
            bias=config.attention_biases,
        )
        self.output = Matrix(
            width, width, numerics, rngs, residual_scale(config), config.biases
        )
        self.counts = config.num_heads, config.kv_heads
        self.groups = head_groups(config, numerics.mesh)
        self.head_dim = config.head_dim
        self.sequence_length = config.sequence_length
        self.rope_base = config.rope_base if config.positions == "rotary" else None
        self.numerics = numerics

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        mixed_BLHK = attend(*self.heads(x_BLD), self.numerics)
        return self.output(mixed_BLHK.reshape(x_BLD.shape))

    def heads(self, x_BLD: jax.Array, start: jax.Array | None = None):
        """Returns q_BLHK, k_BLHK, v_BLHK.

        Args:
            start: Position of the first of them in the sequence; None: 0.
        """
        heads_BLHK = self.qkv(x_BLD).reshape(*x_BLD.shape[:2], -1, self.head_dim)
        q_BLHK, k_BLHK, v_BLHK = split_heads(
            heads_BLHK, *self.counts, self.groups, self.numerics.mesh
        )
        if self.rope_base is not None:
            limit = None if start is None else self.sequence_length
            place = self.rope_base, self.numerics.parameter, start, limit
            q_BLHK, k_BLHK = rotate(q_BLHK, *place), rotate(k_BLHK, *place)
        return q_BLHK, k_BLHK, v_BLHK
