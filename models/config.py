"""Sizes and choices of a decoder-only Transformer. Imports no jax."""

from dataclasses import dataclass

FEED_FORWARDS = ("gelu", "geglu")
COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float64")
PARAMETER_DTYPES = ("float32", "float64")


@dataclass(kw_only=True, slots=True)
class GPTConfig:
    """Decoder-only Transformer: pre-norm, rotary positions, no biases, no dropout.

    There are no biases because some of them (the key's) have a gradient that is zero
    but for rounding, and Adam turns rounding into full-sized updates.

    Attributes:
        num_layers: Number of Transformer blocks.
        model_dim: D, width of the residual stream.
        num_heads: H; the head size K is ``model_dim / num_heads`` and must be even.
        ffn_dim: F, width of the feed-forward layer.
        feed_forward: "gelu" (two matrices) or "geglu" (gated, three matrices).
        vocab_size: V. It must cover the tokenizer's ids.
        sequence_length: L, tokens per sequence.
        rope_base: Base of the rotary frequencies (Su et al. 2021, section 3.4.3).
        norm_epsilon: Added to the mean square in RMSNorm.
        compute_dtype: dtype of matrix products; "auto" is bfloat16 on GPU and TPU and
            the parameters' dtype elsewhere.
        parameter_dtype: dtype of parameters, gradient sums and optimizer state.
    """

    num_layers: int
    model_dim: int
    num_heads: int
    ffn_dim: int
    feed_forward: str = "gelu"
    vocab_size: int = 384
    sequence_length: int
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5
    compute_dtype: str = "auto"
    parameter_dtype: str = "float32"

    def __post_init__(self):
        for name in (
            "num_layers",
            "model_dim",
            "num_heads",
            "ffn_dim",
            "vocab_size",
            "sequence_length",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"model.{name} is {getattr(self, name)}: use 1 or more"
                )
        if self.model_dim % (2 * self.num_heads):
            raise ValueError(
                f"model.model_dim={self.model_dim} must be a multiple of twice "
                f"model.num_heads={self.num_heads} (rotary positions need an even head "
                "size)"
            )
        for name, allowed in (
            ("feed_forward", FEED_FORWARDS),
            ("compute_dtype", COMPUTE_DTYPES),
            ("parameter_dtype", PARAMETER_DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"model.{name}={getattr(self, name)!r}: use one of {allowed}"
                )
