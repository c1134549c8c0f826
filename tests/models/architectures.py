"""A few small models that have every choice of ``GPTConfig`` between them."""

from models.config import GPTConfig

CHANGES = {
    "default": {},
    "biased": dict(feed_forward="relu", norm="layer", positions="learned", biases=True),
    "grouped_padded": dict(
        feed_forward="geglu",
        num_kv_heads=2,
        biases=True,
        qkv_biases=False,
        head_bias=True,
        vocab_multiple=16,
    ),
    "one_kv_head": dict(
        feed_forward="swiglu", num_kv_heads=1, qkv_biases=True, rope_base=100.0
    ),
    "tied": dict(
        positions="sinusoidal",
        embedding_scale=4.0,
        embedding_norm=True,
        tied_head=True,
        vocab_multiple=8,
    ),
    "shared": dict(
        norm="layer",
        norm_epsilon=1e-3,
        positions="learned",
        biases=True,
        block_repeats=3,
        embedding_dim=8,
        embedding_norm=True,
        head="factorised",
        head_bias=True,
        tied_head=True,
    ),
    "factorised": dict(
        feed_forward="swiglu",
        positions="sinusoidal",
        embedding_dim=7,
        head="factorised",
    ),
    "normed_boundaries": dict(norm="layer", boundaries=(1, 2)),
    "bottleneck": dict(
        boundaries=(1, 2), boundary="bottleneck", boundary_factor=2, block_repeats=2
    ),
    "maxout": dict(norm="layer", boundaries=(2,), boundary="maxout", boundary_factor=4),
}


def small(name: str) -> GPTConfig:
    """Three blocks of 16 channels."""
    sizes = dict(num_layers=3, model_dim=16, num_heads=4, ffn_dim=24)
    sizes |= dict(vocab_size=37, sequence_length=12)
    return GPTConfig(**sizes, **CHANGES[name])
