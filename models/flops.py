"""Sizes of the model in numbers: FLOPs and parameters. Imports no jax."""

from dataclasses import dataclass

from models.config import GPTConfig


@dataclass(frozen=True, slots=True)
class LayerFlops:
    """Forward FLOPs of matrix products per token.

    Attributes:
        block: One Transformer block, as often as it is applied.
        embedding: The embedding: a look-up, 0, and the matrix of a factorised one.
        head: The head's matrices, padding included.
        boundary: One boundary layer. Who balances stages may leave it out: it costs
            less than a sixth of a block wherever F is 4 D.
    """

    block: int
    embedding: int
    head: int
    boundary: int


def layer_flops(config: GPTConfig) -> LayerFlops:
    """Two FLOPs per multiply-add; attention over all L positions, masked or not.

    This is the count of PaLM (Chowdhery et al. 2022, appendix B), forward only.
    """
    attention = 2 * 2 * config.sequence_length * config.model_dim
    return LayerFlops(
        block=config.block_repeats * (2 * _block_matrices(config) + attention),
        embedding=2 * _projection(config),
        head=2 * (_way_down(config) + _head_width(config) * config.padded_vocab_size),
        boundary=2 * _boundary_matrices(config),
    )


def parameter_count(config: GPTConfig) -> int:
    """Parameters of the whole model; padding, norms and biases included."""
    boundaries = len(config.boundaries) * _boundary(config)
    blocks = config.num_layers * _block(config)
    return _embedding(config) + blocks + boundaries + _head(config)


def _block(config: GPTConfig) -> int:
    width, hidden = config.model_dim, config.ffn_dim
    biases = config.biases * (2 * width + hidden * (1 + config.gated))
    qkv_biases = config.attention_biases * _qkv_width(config)
    norms = 2 * _norm(config, width)
    return _block_matrices(config) + biases + qkv_biases + norms


def _block_matrices(config: GPTConfig) -> int:
    feed_forward = (2 + config.gated) * config.ffn_dim
    return config.model_dim * (_qkv_width(config) + config.model_dim + feed_forward)


def _qkv_width(config: GPTConfig) -> int:
    return (config.num_heads + 2 * config.kv_heads) * config.head_dim


def _embedding(config: GPTConfig) -> int:
    learned = config.positions == "learned"
    rows = config.padded_vocab_size + learned * config.sequence_length
    norm = config.embedding_norm * _norm(config, config.table_dim)
    factorised = config.embedding_dim is not None
    bias = factorised * config.biases * config.model_dim
    return rows * config.table_dim + norm + _projection(config) + bias


def _projection(config: GPTConfig) -> int:
    return (config.embedding_dim or 0) * config.model_dim


def _boundary(config: GPTConfig) -> int:
    width, narrow = config.model_dim, config.model_dim // config.boundary_factor
    norm = _norm(config, width)
    if config.boundary == "norm":
        return norm
    biases = width + (config.boundary == "bottleneck") * narrow
    return norm + _norm(config, narrow) + _boundary_matrices(config) + biases


def _boundary_matrices(config: GPTConfig) -> int:
    one = config.model_dim * config.model_dim // config.boundary_factor
    return {"norm": 0, "maxout": one, "bottleneck": 2 * one}[config.boundary]


def _head(config: GPTConfig) -> int:
    norms, bias = _norm(config, config.model_dim), 0
    if config.head == "factorised":
        norms += _norm(config, config.table_dim)
        bias = config.biases * config.table_dim
    matrix = (not config.tied_head) * _head_width(config) * config.padded_vocab_size
    output_bias = config.head_bias * config.padded_vocab_size
    return norms + _way_down(config) + bias + matrix + output_bias


def _way_down(config: GPTConfig) -> int:
    factorised = config.head == "factorised"
    return factorised * config.model_dim * config.table_dim


def _head_width(config: GPTConfig) -> int:
    return config.table_dim if config.head == "factorised" else config.model_dim


def _norm(config: GPTConfig, width: int) -> int:
    return width * {"rms": 1, "layer": 2}[config.norm]
