"""The same model in PyTorch: the one oracle outside JAX, and the baseline for speed.

Written from the formulas, with PyTorch's own layers. It shares no code with ``gpt.py``;
``torch_weights.py`` brings parameters over. Modules are named as that format names
them.

Shape suffixes: B microbatch, L sequence, D model, E embedding, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import GPTConfig
from models.torch_layers import (
    Block,
    Compress,
    Expand,
    make_activation,
    make_norm,
    make_rotation,
)

IGNORED = -1
"""Targets below 0 are given to PyTorch as this."""

LONGEST_WAVE = 10_000.0
"""Of sinusoidal positions, over 2 pi."""


class TorchGPT(nn.Module):
    """The whole model; ``forward`` gives logits.

    Its matrices are [outputs, inputs], as is the custom in PyTorch. They are to be
    loaded (``torch_weights.load_layers``): what they start with here is of no use.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embed = Embed(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        places = list(map(str, config.boundaries))
        self.compress = nn.ModuleDict({place: Compress(config) for place in places})
        expanded = [] if config.boundary == "norm" else places
        self.expand = nn.ModuleDict({place: Expand(config) for place in expanded})
        self.head = Head(config)
        if config.tied_head:
            self.head.output.weight = self.embed.embedding
        rotation = make_rotation(config) if config.positions == "rotary" else None
        self.register_buffer("rotation", rotation, persistent=False)
        self.to(getattr(torch, config.parameter_dtype))

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Returns logits_BLV, without those of the vocabulary's padding."""
        x_BLD = self.embed(tokens_BL)
        for place, block in enumerate(self.layers, start=1):
            for _ in range(self.config.block_repeats):
                x_BLD = block(x_BLD, self.rotation)
            for half in (self.compress, self.expand):
                if str(place) in half:
                    x_BLD = half[str(place)](x_BLD)
        return self.head(x_BLD)[..., : self.config.vocab_size]

    def loss(self, tokens_BL: Tensor, targets_BL: Tensor) -> Tensor:
        """Sum of the cross entropy over the targets that are not negative."""
        logits_BLV = self(tokens_BL)
        return F.cross_entropy(
            logits_BLV.flatten(0, 1).to(self.embed.embedding.dtype),
            targets_BL.flatten().clamp(min=IGNORED).long(),
            ignore_index=IGNORED,
            reduction="sum",
        )

    def matrices(self) -> list[nn.Parameter]:
        """What weight decay applies to: matrices and tables."""
        return [parameter for parameter in self.parameters() if parameter.dim() == 2]

    def vectors(self) -> list[nn.Parameter]:
        """All others: norm scales and biases."""
        return [parameter for parameter in self.parameters() if parameter.dim() == 1]


class Embed(nn.Module):
    """Table rows times their scale, plus positions, normed, brought to D."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        length, width = config.sequence_length, config.table_dim
        self.scale = config.embedding_scale
        self.embedding = nn.Parameter(torch.zeros(config.padded_vocab_size, width))
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.zeros(length, width))
        else:
            waves = _sinusoids(length, width) if config.positions != "rotary" else None
            self.register_buffer("positions", waves, persistent=False)
        self.norm = make_norm(config, width) if config.embedding_norm else None
        self.projection = (
            None
            if config.embedding_dim is None
            else nn.Linear(width, config.model_dim, bias=config.biases)
        )

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Returns x_BLD."""
        x_BLE = F.embedding(tokens_BL, self.embedding) * self.scale
        if self.positions is not None:
            x_BLE = x_BLE + self.positions[: tokens_BL.shape[1]]
        if self.norm is not None:
            x_BLE = self.norm(x_BLE)
        return x_BLE if self.projection is None else self.projection(x_BLE)


def _sinusoids(length: int, width: int) -> Tensor:
    """[L, E]: sine in even channels, cosine in odd ones (Vaswani et al. 2017, 3.5)."""
    exponents = torch.arange(0, width, 2).double() / width
    angles = torch.outer(torch.arange(length).double(), LONGEST_WAVE**-exponents)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


class Head(nn.Module):
    """norm, W; factorised: norm, W1, activation, norm, W."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.norm = make_norm(config, config.model_dim)
        self.factorised = config.head == "factorised"
        width = config.table_dim if self.factorised else config.model_dim
        if self.factorised:
            self.input = nn.Linear(config.model_dim, width, bias=config.biases)
            self.activation = make_activation(config)
            self.output_norm = make_norm(config, width)
        self.output = nn.Linear(width, config.padded_vocab_size, bias=config.head_bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Returns logits of the padded vocabulary."""
        x = self.norm(x_BLD)
        if self.factorised:
            x = self.output_norm(self.activation(self.input(x)))
        return self.output(x)
