"""What is trained on and validated with. Read it through ``swarm_jax.config``."""

from dataclasses import dataclass

from swarm_jax.config_checks import at_least, one_of
from swarm_jax.errors import ConfigError

CORPORA = ("files", "jsonl", "tfds")
TOKENIZERS = ("bytes", "bpe", "gpt2")
PACKINGS = ("stream", "documents")
ON_BROKEN_LINE = ("stop", "skip")

HELD_OUT = "held_out"
"""The validation set that is the corpus's own held-out split."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where the tokens come from.

    Attributes:
        corpus: "stdlib" (source of the running interpreter's standard library),
            "files:FOLDER_OR_GLOB" (local text files), "jsonl:PATH_OR_GLOB" (JSON lines,
            also .gz and .zst: the Pile's format) or "tfds:NAME" (catalogue).
        text_field: Field of a JSON line or a TFDS example that holds the text.
        on_broken_line: What a JSON line without text leads to: "stop", or "skip" it
            with a warning.
        tokenizer: "bytes" (256 + end-of-text), "bpe" (trained on the corpus) or "gpt2"
            (ready-made, from ``tokenizer_path``).
        bpe_vocab_size: Size of the BPE vocabulary, end-of-text included.
        tokenizer_path: For "gpt2": a tokenizer.json, or vocab.json with merges.txt
            beside it, or the folder of either.
        end_of_text: For "gpt2": the token that closes a document.
        packing: "stream" (windows over all documents, one after the other; every target
            carries loss) or "documents" (sequences packed from whole documents, longer
            ones cut; neither padding nor what follows a document's end carries loss).
        held_out_fraction: Share of the documents kept for validation.
        target_batch_size: Sequences per step, over the whole swarm.
        max_corpus_bytes: Reads no more than this much text of a corpus; None for all
            of it.
    """

    corpus: str = "stdlib"
    text_field: str = "text"
    on_broken_line: str = "stop"
    tokenizer: str = "bytes"
    bpe_vocab_size: int = 4096
    tokenizer_path: str | None = None
    end_of_text: str = "<|endoftext|>"
    packing: str = "stream"
    held_out_fraction: float = 0.05
    target_batch_size: int = 32
    max_corpus_bytes: int | None = None

    def __post_init__(self):
        _check_corpus("data.corpus", self.corpus)
        one_of("data.on_broken_line", self.on_broken_line, ON_BROKEN_LINE)
        one_of("data.packing", self.packing, PACKINGS)
        one_of("data.tokenizer", self.tokenizer, TOKENIZERS)
        if (self.tokenizer == "gpt2") != (self.tokenizer_path is not None):
            raise ConfigError(
                f"data.tokenizer={self.tokenizer!r} with data.tokenizer_path="
                f"{self.tokenizer_path!r}: 'gpt2' needs the path of a tokenizer.json "
                "or of vocab.json and merges.txt; the others make their own vocabulary"
            )
        at_least("data.bpe_vocab_size", self.bpe_vocab_size, 257)
        at_least("data.target_batch_size", self.target_batch_size, 1)
        limit = self.max_corpus_bytes
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ConfigError(
                f"data.max_corpus_bytes={limit!r}: use a number of bytes, or None for "
                "the whole corpus"
            )
        if not 0 < self.held_out_fraction < 1:
            raise ConfigError(
                f"data.held_out_fraction={self.held_out_fraction}: use a number "
                "between 0 and 1"
            )


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    """What is validated with, and when.

    Attributes:
        every_steps: Validate after every so many steps; 0 for the end only.
        sequences: Sequences per validation, of each set.
        sets: Further sets beside the held-out split, as "NAME=CORPUS" with a corpus as
            in ``data.corpus``, for example ``("wiki=jsonl:/data/wiki.jsonl",)``.
    """

    every_steps: int = 0
    sequences: int = 64
    sets: tuple[str, ...] = ()

    def __post_init__(self):
        at_least("validation.every_steps", self.every_steps, 0)
        at_least("validation.sequences", self.sequences, 1)
        self.sets = tuple(self.sets)
        for entry in self.sets:
            name, _, corpus = entry.partition("=")
            if not name.replace("_", "").isalnum() or name == HELD_OUT:
                raise ConfigError(
                    f"validation.sets: {entry!r}: write 'NAME=CORPUS', with a name of "
                    f"letters, digits and '_' other than {HELD_OUT!r}"
                )
            _check_corpus(f"validation.sets: {name}", corpus)
        if len(self.corpora) < len(self.sets):
            raise ConfigError(f"validation.sets={self.sets}: give each its own name")

    @property
    def corpora(self) -> dict[str, str]:
        """The corpora of ``sets`` by name."""
        pairs = (entry.partition("=") for entry in self.sets)
        return {name: corpus for name, _, corpus in pairs}

    @property
    def metrics(self) -> dict[str, str]:
        """By set, the held-out split first, what its loss is called."""
        named = {name: f"validation_loss/{name}" for name in self.corpora}
        return {HELD_OUT: "validation_loss"} | named


def _check_corpus(name: str, corpus: str) -> None:
    kind, _, where = corpus.partition(":")
    if corpus != "stdlib" and not (kind in CORPORA and where):
        raise ConfigError(
            f"{name}={corpus!r}: use 'stdlib', 'files:FOLDER_OR_GLOB', "
            "'jsonl:PATH_OR_GLOB' or 'tfds:NAME'"
        )
