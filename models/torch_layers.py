"""What the PyTorch model is made of: norms, attention, feed-forward, boundary layers.

Shape suffixes: B microbatch, L sequence, D model, H heads, K head size, F feed-forward.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import GPTConfig


def make_norm(config: GPTConfig, width: int) -> nn.Module:
    """RMSNorm with a scale, or LayerNorm with scale and bias, over the last axis."""
    kind = RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(width, config.norm_epsilon)


class RMSNorm(nn.RMSNorm):
    """In the dtype of its scale also under autocast, as PyTorch's own LayerNorm is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def make_activation(config: GPTConfig) -> Callable[[Tensor], Tensor]:
    """ReLU, GELU in its tanh form, or SiLU (x times its sigmoid)."""
    return {
        "relu": F.relu,
        "gelu": _gelu,
        "geglu": _gelu,
        "swiglu": F.silu,
    }[config.feed_forward]


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class Block(nn.Module):
    """Attention and feed-forward, each added to the stream, each behind a norm."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attention_norm = make_norm(config, config.model_dim)
        self.attention = Attention(config)
        self.feed_forward_norm = make_norm(config, config.model_dim)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BLD: Tensor, rotation: Tensor | None) -> Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), rotation)
        return x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))


class Attention(nn.Module):
    """Causal; ``qkv`` gives all queries, then all keys, then all values.

    With fewer heads of keys and values than of queries, each serves a run of adjacent
    query heads.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.grouped = config.kv_heads < config.num_heads
        key_width = config.kv_heads * config.head_dim
        self.widths = (config.model_dim, key_width, key_width)
        width, biased = config.model_dim, config.attention_biases
        self.qkv = nn.Linear(width, sum(self.widths), bias=biased)
        self.output = nn.Linear(width, width, bias=config.biases)

    def forward(self, x_BLD: Tensor, rotation: Tensor | None) -> Tensor:
        q_BHLK, k_BHLK, v_BHLK = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in self.qkv(x_BLD).split(self.widths, dim=-1)
        )
        if rotation is not None:
            q_BHLK, k_BHLK = _rotate(q_BHLK, rotation), _rotate(k_BHLK, rotation)
        mixed_BHLK = F.scaled_dot_product_attention(
            q_BHLK, k_BHLK, v_BHLK, is_causal=True, enable_gqa=self.grouped
        )
        return self.output(mixed_BHLK.transpose(1, 2).flatten(2))


def make_rotation(config: GPTConfig) -> Tensor:
    """Cosines and sines [2, L, K] of position times frequency, each frequency twice."""
    exponents = torch.arange(0, config.head_dim, 2).double() / config.head_dim
    positions = torch.arange(config.sequence_length).double()
    angles = torch.outer(positions, config.rope_base**-exponents).repeat(1, 2)
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x_BHLK: Tensor, rotation: Tensor) -> Tensor:
    """Rotary positions: (a, b) to (a cos - b sin, b cos + a sin), halves paired."""
    cos_LK, sin_LK = rotation[:, : x_BHLK.shape[2]].to(x_BHLK.dtype)
    left, right = x_BHLK.chunk(2, dim=-1)
    return x_BHLK * cos_LK + torch.cat((-right, left), dim=-1) * sin_LK


class FeedForward(nn.Module):
    """W2 act(W1 x); gated: W2 (act(Wg x) * W1 x)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        sizes = config.model_dim, config.ffn_dim
        self.activation = make_activation(config)
        self.input = nn.Linear(*sizes, bias=config.biases)
        self.gate = nn.Linear(*sizes, bias=config.biases) if config.gated else None
        self.output = nn.Linear(*reversed(sizes), bias=config.biases)

    def forward(self, x_BLD: Tensor) -> Tensor:
        hidden_BLF = self.input(x_BLD)
        if self.gate is None:
            return self.output(self.activation(hidden_BLF))
        return self.output(self.activation(self.gate(x_BLD)) * hidden_BLF)


class Compress(nn.Module):
    """The sender's half of a boundary: [B, L, D] to what travels, [B, L, D / k].

    "norm" is one norm; "bottleneck" norm(W1 norm(x)); "maxout" norm(m), where m is the
    largest of each k adjacent channels of norm(x).
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        width = config.model_dim // config.boundary_factor
        self.kind, self.factor = config.boundary, config.boundary_factor
        self.norm = make_norm(config, config.model_dim)
        if self.kind == "bottleneck":
            self.input = nn.Linear(config.model_dim, width)
        if self.kind != "norm":
            self.output_norm = make_norm(config, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        normed_BLD = self.norm(x_BLD)
        if self.kind == "norm":
            return normed_BLD
        if self.kind == "bottleneck":
            return self.output_norm(self.input(normed_BLD))
        groups = normed_BLD.unflatten(-1, (-1, self.factor))
        return self.output_norm(groups.max(-1).values)


class Expand(nn.Module):
    """The receiver's half: W2, from D / k channels to D. "norm" has none."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        width = config.model_dim // config.boundary_factor
        self.output = nn.Linear(width, config.model_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x)
