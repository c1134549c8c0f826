"""Sizes and choices of a decoder-only Transformer. Imports no jax."""

from dataclasses import dataclass

FEED_FORWARDS = ("relu", "gelu", "geglu", "swiglu")
NORMS = ("rms", "layer")
POSITIONS = ("rotary", "learned", "sinusoidal")
HEADS = ("linear", "factorised")
BOUNDARIES = ("norm", "bottleneck", "maxout")
COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float64")
PARAMETER_DTYPES = ("float32", "float64")


@dataclass(kw_only=True, slots=True)
class GPTConfig:
    """Decoder-only Transformer: pre-norm, causal, no dropout.

    By default there are no biases, because some of them (the key's) have a gradient
    that is zero but for rounding, and Adam turns rounding into full-sized updates.

    What stands at a boundary of stages (``boundaries``) is part of the model, at named
    positions: one process has these layers too, and a swarm that is cut elsewhere
    trains the same model.

    Attributes:
        num_layers: Number of Transformer blocks that have parameters of their own.
        block_repeats: How often each block is applied, one time after the other
            (sharing across layers, as in ALBERT: Lan et al. 2020, section 3.1).
        model_dim: D, width of the residual stream.
        num_heads: H; the head size K is ``model_dim / num_heads``.
        num_kv_heads: Heads of keys and values (grouped-query attention, Ainslie et al.
            2023); None for ``num_heads``.
        ffn_dim: F, width of the feed-forward layer.
        feed_forward: "relu" or "gelu" (two matrices), "geglu" or "swiglu" (gated,
            three matrices: Shazeer 2020).
        norm: "rms" (Zhang & Sennrich 2019) or "layer" (Ba et al. 2016).
        norm_epsilon: Added to the mean square or the variance.
        positions: "rotary" (Su et al. 2021), "learned" or "sinusoidal" (Vaswani et al.
            2017, section 3.5); the last two are added to the embedding.
        rope_base: Base of the rotary frequencies (Su et al. 2021, section 3.4.3).
        biases: Whether matrices have biases.
        qkv_biases: Whether those of queries, keys and values do; None for ``biases``.
        vocab_size: V. It must cover the tokenizer's ids.
        vocab_multiple: Tables are padded to a multiple of this; no loss and no sample
            sees the padding.
        sequence_length: L, tokens per sequence.
        embedding_dim: E, width of the embedding table, brought to D by a matrix
            (factorised embedding, Lan et al. 2020); None for D, without that matrix.
        embedding_norm: Whether the embedding, positions included, is normed.
        embedding_scale: What table rows are multiplied by; they start with a standard
            deviation of its inverse.
        head: "linear" (norm, matrix), or "factorised" (norm, matrix to E, the
            activation, norm, matrix to V: ALBERT's).
        head_bias: Whether the matrix to V has a bias.
        tied_head: Whether the matrix to V is the embedding table.
        boundaries: Blocks, counted from 1, after which a boundary layer stands.
        boundary: "norm", "bottleneck" (norm, matrix to D / k, norm; matrix to D) or
            "maxout" (norm, largest of k adjacent channels, norm; matrix to D); a cut
            there goes before the last matrix, so that D / k channels travel (Ryabinin
            et al. 2023, section on compression-aware architectures).
        boundary_factor: k; 1 for "norm".
        compute_dtype: dtype of matrix products; "auto" is bfloat16 on GPU and TPU and
            the parameters' dtype elsewhere.
        parameter_dtype: dtype of parameters, gradient sums and optimizer state.
    """

    num_layers: int
    block_repeats: int = 1
    model_dim: int
    num_heads: int
    num_kv_heads: int | None = None
    ffn_dim: int
    feed_forward: str = "gelu"
    norm: str = "rms"
    norm_epsilon: float = 1e-5
    positions: str = "rotary"
    rope_base: float = 10_000.0
    biases: bool = False
    qkv_biases: bool | None = None
    vocab_size: int = 384
    vocab_multiple: int = 1
    sequence_length: int
    embedding_dim: int | None = None
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    head: str = "linear"
    head_bias: bool = False
    tied_head: bool = False
    boundaries: tuple[int, ...] = ()
    boundary: str = "norm"
    boundary_factor: int = 1
    compute_dtype: str = "auto"
    parameter_dtype: str = "float32"

    def __post_init__(self):
        for name in (
            "num_layers",
            "block_repeats",
            "model_dim",
            "num_heads",
            "kv_heads",
            "ffn_dim",
            "vocab_size",
            "vocab_multiple",
            "sequence_length",
            "table_dim",
            "boundary_factor",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"model.{name} is {getattr(self, name)}: use 1 or more"
                )
        for name, allowed in (
            ("feed_forward", FEED_FORWARDS),
            ("norm", NORMS),
            ("positions", POSITIONS),
            ("head", HEADS),
            ("boundary", BOUNDARIES),
            ("compute_dtype", COMPUTE_DTYPES),
            ("parameter_dtype", PARAMETER_DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"model.{name}={getattr(self, name)!r}: use one of {allowed}"
                )
        self._check_heads()
        self._check_tying()
        self._check_boundaries()

    @property
    def head_dim(self) -> int:
        """K, size of one attention head."""
        return self.model_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def table_dim(self) -> int:
        """Width of the embedding table."""
        return self.model_dim if self.embedding_dim is None else self.embedding_dim

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table and columns of the last matrix."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a gate."""
        return self.feed_forward in ("geglu", "swiglu")

    @property
    def attention_biases(self) -> bool:
        """Whether the matrix of queries, keys and values has a bias."""
        return self.biases if self.qkv_biases is None else self.qkv_biases

    def width_after(self, layer: int) -> int:
        """Channels that travel when the model is cut after ``layer`` blocks."""
        compressed = layer in self.boundaries and self.boundary != "norm"
        return self.model_dim // self.boundary_factor if compressed else self.model_dim

    def _check_heads(self) -> None:
        rotary = self.positions == "rotary"
        if self.model_dim % (self.num_heads * (1 + rotary)):
            raise ValueError(
                f"model.model_dim={self.model_dim} must be a multiple of "
                f"{'twice ' if rotary else ''}model.num_heads={self.num_heads}"
                + (" (rotary positions need an even head size)" if rotary else "")
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"model.num_kv_heads={self.num_kv_heads} must divide "
                f"model.num_heads={self.num_heads}"
            )

    def _check_tying(self) -> None:
        if self.tied_head and self.head == "linear" and self.embedding_dim is not None:
            raise ValueError(
                "model.tied_head needs a table as wide as what it is multiplied with: "
                "leave model.embedding_dim=None, or use model.head='factorised'"
            )

    def _check_boundaries(self) -> None:
        self.boundaries = tuple(self.boundaries)
        places = self.boundaries
        if list(places) != sorted(set(places)) or not all(
            1 <= place < self.num_layers for place in places
        ):
            raise ValueError(
                f"model.boundaries={places}: name blocks in ascending order, from 1 to "
                f"{self.num_layers - 1} (model.num_layers - 1)"
            )
        if self.boundary == "norm" and self.boundary_factor != 1:
            raise ValueError(
                f"model.boundary_factor={self.boundary_factor}: a norm compresses "
                "nothing; use model.boundary='bottleneck' or 'maxout', or 1"
            )
        if self.model_dim % self.boundary_factor:
            raise ValueError(
                f"model.boundary_factor={self.boundary_factor} must divide "
                f"model.model_dim={self.model_dim}"
            )
