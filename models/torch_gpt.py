"""The same model in PyTorch: the one oracle outside JAX, and the baseline for speed.

Written from the formulas, with PyTorch's own layers. It shares no code with ``gpt.py``;
parameters come over as numpy arrays in the per-layer format of ``functional.to_layers``
and go back in it.

Shape suffixes: B microbatch, L sequence, D model, H heads, K head size, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import GPTConfig

IGNORED = -1
"""Targets below 0 are given to PyTorch as this."""


class TorchGPT(nn.Module):
    """The whole model; ``forward`` gives logits.

    Its matrices are [outputs, inputs], as is the custom in PyTorch. They are to be
    loaded (``load_layers``): what they start with here is of no use.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        width, epsilon = config.model_dim, config.norm_epsilon
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(width, epsilon)
        self.output = nn.Linear(width, config.vocab_size, bias=False)
        self.register_buffer("rotation", _rotation(config), persistent=False)
        self.to(getattr(torch, config.parameter_dtype))

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Returns logits_BLV."""
        x_BLD = self.embedding(tokens_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, self.rotation)
        return self.output(self.norm(x_BLD))

    def loss(self, tokens_BL: Tensor, targets_BL: Tensor) -> Tensor:
        """Sum of the cross entropy over the targets that are not negative."""
        logits_BLV = self(tokens_BL)
        return F.cross_entropy(
            logits_BLV.flatten(0, 1).to(self.norm.weight.dtype),
            targets_BL.flatten().clamp(min=IGNORED).long(),
            ignore_index=IGNORED,
            reduction="sum",
        )

    def matrices(self) -> list[nn.Parameter]:
        """What weight decay applies to: all but norm scales."""
        return [parameter for parameter in self.parameters() if parameter.dim() == 2]

    def scales(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.dim() == 1]


class Block(nn.Module):
    """Attention and feed-forward, each added to the stream, each behind a norm."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        width, hidden = config.model_dim, config.ffn_dim
        self.num_heads = config.num_heads
        self.attention_norm = nn.RMSNorm(width, config.norm_epsilon)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.RMSNorm(width, config.norm_epsilon)
        self.input = nn.Linear(width, hidden, bias=False)
        gated = config.feed_forward == "geglu"
        self.gate = nn.Linear(width, hidden, bias=False) if gated else None
        self.feed_forward_output = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BLD: Tensor, rotation: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), rotation)
        return x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))

    def attention(self, x_BLD: Tensor, rotation: Tensor) -> Tensor:
        q_BHLK, k_BHLK, v_BHLK = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(x_BLD).chunk(3, dim=-1)
        )
        mixed_BHLK = F.scaled_dot_product_attention(
            _rotate(q_BHLK, rotation), _rotate(k_BHLK, rotation), v_BHLK, is_causal=True
        )
        return self.attention_output(mixed_BHLK.transpose(1, 2).flatten(2))

    def feed_forward(self, x_BLD: Tensor) -> Tensor:
        hidden_BLF = self.input(x_BLD)
        if self.gate is None:
            hidden_BLF = F.gelu(hidden_BLF, approximate="tanh")
        else:
            gate_BLF = F.gelu(self.gate(x_BLD), approximate="tanh")
            hidden_BLF = gate_BLF * hidden_BLF
        return self.feed_forward_output(hidden_BLF)


def _rotation(config: GPTConfig) -> Tensor:
    """Cosines and sines [2, L, K] of position times frequency, each frequency twice."""
    size = config.model_dim // config.num_heads
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    positions = torch.arange(config.sequence_length, dtype=torch.float64)
    angles = torch.outer(positions, config.rope_base**-exponents).repeat(1, 2)
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x_BHLK: Tensor, rotation: Tensor) -> Tensor:
    """Rotary positions: (a, b) to (a cos - b sin, b cos + a sin), halves paired."""
    cos_LK, sin_LK = rotation[:, : x_BHLK.shape[2]].to(x_BHLK.dtype)
    left, right = x_BHLK.chunk(2, dim=-1)
    return x_BHLK * cos_LK + torch.cat((-right, left), dim=-1) * sin_LK


def load_layers(model: TorchGPT, layers: Mapping[str, Any]) -> None:
    """Takes the parameters of all layers, in the format of ``functional.to_layers``."""
    with torch.no_grad():
        for layer, path, parameter in _named(model):
            array = layers[layer]
            for key in path:
                array = array[key]
            parameter.copy_(_oriented(torch.from_numpy(np.array(array)), path))


def gradient_layers(model: TorchGPT) -> dict[str, Any]:
    """The gradients, in that format."""
    layers: dict[str, Any] = {}
    for layer, path, parameter in _named(model):
        tree = layers.setdefault(layer, {})
        for key in path[:-1]:
            tree = tree.setdefault(key, {})
        tree[path[-1]] = _oriented(parameter.grad, path).cpu().numpy()
    return layers


def _named(model: TorchGPT):
    """Yields layer name, path inside the layer, and parameter."""
    yield "embed", ("embedding",), model.embedding.weight
    for index, block in enumerate(model.blocks):
        for path, module in (
            (("attention_norm", "scale"), block.attention_norm),
            (("attention", "qkv", "kernel"), block.qkv),
            (("attention", "output", "kernel"), block.attention_output),
            (("feed_forward_norm", "scale"), block.feed_forward_norm),
            (("feed_forward", "input", "kernel"), block.input),
            (("feed_forward", "gate", "kernel"), block.gate),
            (("feed_forward", "output", "kernel"), block.feed_forward_output),
        ):
            if module is not None:
                yield f"layers.{index}", path, module.weight
    yield "head", ("norm", "scale"), model.norm.weight
    yield "head", ("output", "kernel"), model.output.weight


def _oriented(tensor: Tensor, path: tuple[str, ...]) -> Tensor:
    return tensor.T if path[-1] == "kernel" else tensor
