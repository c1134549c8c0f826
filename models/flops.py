"""Sizes of the model in numbers: FLOPs and parameters. Imports no jax."""

from dataclasses import dataclass

from models.config import GPTConfig


@dataclass(frozen=True, slots=True)
class LayerFlops:
    """Forward FLOPs of matrix products per token.

    Attributes:
        block: One Transformer block.
        embedding: The embedding: a look-up, 0.
        head: The output matrix.
    """

    block: int
    embedding: int
    head: int


def layer_flops(config: GPTConfig) -> LayerFlops:
    """Two FLOPs per multiply-add; attention over all L positions, masked or not.

    This is the count of PaLM (Chowdhery et al. 2022, appendix B), forward only.
    """
    attention = 2 * 2 * config.sequence_length * config.model_dim
    return LayerFlops(
        block=2 * _block_matrices(config) + attention,
        embedding=0,
        head=2 * config.model_dim * config.vocab_size,
    )


def parameter_count(config: GPTConfig) -> int:
    """Parameters of the whole model, norm scales included."""
    block = _block_matrices(config) + 2 * config.model_dim
    tables = 2 * config.vocab_size * config.model_dim
    return config.num_layers * block + tables + config.model_dim


def _block_matrices(config: GPTConfig) -> int:
    feed_forward = {"gelu": 2, "geglu": 3}[config.feed_forward] * config.ffn_dim
    return config.model_dim * (4 * config.model_dim + feed_forward)
