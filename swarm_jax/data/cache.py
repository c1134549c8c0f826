"""Tokens of a corpus, made once and kept.

An entry of the cache (``entries.py``) is named by everything that determines it::

    tokenizer.json         the tokenizer
    SPLIT.tokens           ids, each document closed with end-of-text; little-endian
    SPLIT.ends             where each document ends in it, behind its end-of-text
    dataset_info.json, features.json, corpus-SPLIT.array_record-*   the documents
                           (TFDS), if the corpus is copied

Documents are read one after the other and their tokens written as they come, so that
memory does not grow with the corpus.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from swarm_jax.config import DataConfig
from swarm_jax.data.corpus import (
    Corpus,
    Document,
    DocumentDigest,
    HeldOut,
    limited,
    open_corpus,
)
from swarm_jax.data.entries import Entry, NewEntry, open_entry
from swarm_jax.data.local_tfds import (
    SPLITS,
    TRAIN,
    VALIDATION,
    batched,
    read_tfds,
    write_tfds,
)
from swarm_jax.data.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    VocabularyFiles,
    VocabularyTokenizer,
    train_bpe,
)
from swarm_jax.errors import ConfigError

logger = logging.getLogger(__name__)

FORMAT = 2
"""Part of every key: raise it when the same settings would give other files."""

BPE_TRAINING_BYTES = 1 << 30
"""A vocabulary is learned from no more than this: what it counts lies in memory."""

_MESSAGE_BYTES = 1 << 30
_Pairs = Iterator[tuple[str, Document]]


@dataclass(frozen=True, slots=True)
class Split:
    """Attributes:
    path: Names the tokens: what is made of them is kept under names that begin so.
    tokens: Ids [num_tokens].
    ends: Where each document ends in them [num_documents].
    end_of_text: The id that closes each document, and is nowhere else.
    """

    path: Path
    tokens: np.ndarray
    ends: np.ndarray
    end_of_text: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Attributes:
    digest: SHA-256 of all documents, their split and the tokenizer.
    vocab_size: Of the tokenizer.
    tokenizer_digest: SHA-256 of the tokenizer alone.
    tokenizer_file: Where it lies.
    splits: By name.
    """

    digest: str
    vocab_size: int
    tokenizer_digest: str
    tokenizer_file: Path
    splits: dict[str, Split]


def cached_tokens(config: DataConfig, cache_dir: Path) -> Tokens:
    """The corpus's tokens, divided; made first if they are not in the cache.

    Raises:
        ConfigError: Corpus or vocabulary cannot be read, or the corpus not divided.
    """
    corpus = open_corpus(config, config.corpus)
    key = _key(corpus.identity(), _tokenizer_key(config), config.held_out_fraction)
    entry = open_entry(cache_dir / key, lambda new: _fill(new, config, corpus))
    return _tokens(entry)


def cached_set(
    config: DataConfig, name: str, corpus_name: str, made_with: Tokens, cache_dir: Path
) -> Tokens:
    """A whole corpus as the split "validation", in tokens of another's tokenizer.

    Args:
        config: How corpora are read.
        name: Of the validation set.
        corpus_name: Where it comes from.
        made_with: What the tokenizer was made for.

    Raises:
        ConfigError: The corpus cannot be read, or has no text.
    """
    try:
        corpus = open_corpus(config, corpus_name)
        key = _key(corpus.identity(), made_with.tokenizer_digest, None)

        def fill(new: NewEntry) -> dict[str, Any]:
            tokenizer = _read_tokenizer(config, made_with.tokenizer_file.read_text())
            pairs = ((VALIDATION, document) for document in corpus.documents())
            return _write_tokens(new, pairs, tokenizer)

        return _tokens(open_entry(cache_dir / key, fill))
    except ConfigError as error:
        raise ConfigError(f"validation.sets: {name}={corpus_name}: {error}") from error


def cached_tokenizer(config: DataConfig, cache_dir: Path) -> Tokenizer:
    """The tokenizer of the data; tokens are made first where it is trained on them.

    Raises:
        ConfigError: Corpus or vocabulary cannot be read, or the corpus not divided.
    """
    if config.tokenizer_path is not None:
        return VocabularyFiles(config.tokenizer_path).load(config.end_of_text)
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    file = cached_tokens(config, cache_dir).tokenizer_file
    return _read_tokenizer(config, file.read_text())


def _key(identity: str, tokenizer: str, held_out_fraction: float | None) -> str:
    parts = [FORMAT, identity, tokenizer, held_out_fraction]
    return f"tokens-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


def _tokenizer_key(config: DataConfig) -> str:
    if config.tokenizer == "bpe":
        return f"bpe{config.bpe_vocab_size}"
    if config.tokenizer_path is not None:
        return f"{VocabularyFiles(config.tokenizer_path).digest()} {config.end_of_text}"
    return config.tokenizer


def _tokens(entry: Entry) -> Tokens:
    splits = {
        split: Split(
            entry.folder.with_name(f"{entry.folder.name}-{split}"),
            entry.arrays[f"{split}.tokens"],
            entry.arrays[f"{split}.ends"],
            entry.facts["end_of_text"],
        )
        for split in SPLITS
        if f"{split}.tokens" in entry.arrays
    }
    facts = entry.facts
    return Tokens(
        digest=facts["digest"],
        vocab_size=facts["vocab_size"],
        tokenizer_digest=facts["tokenizer_digest"],
        tokenizer_file=entry.folder / "tokenizer.json",
        splits=splits,
    )


def _fill(new: NewEntry, config: DataConfig, corpus: Corpus) -> dict[str, Any]:
    names = (document.name for document in corpus.documents())
    held_out = HeldOut(names, config.held_out_fraction)
    pairs = partial(_divided, corpus, held_out)
    if corpus.is_copied:
        write_tfds(new.folder, pairs())
        pairs = partial(_stored, new.folder)
    return _write_tokens(new, pairs(), _make_tokenizer(config, pairs))


def _divided(corpus: Corpus, held_out: HeldOut) -> _Pairs:
    for document in corpus.documents():
        yield (VALIDATION if document.name in held_out else TRAIN), document


def _stored(folder: Path) -> _Pairs:
    for split in SPLITS:
        for document in read_tfds(folder, split):
            yield split, document


def _make_tokenizer(config: DataConfig, pairs: Callable[[], _Pairs]) -> Tokenizer:
    if config.tokenizer_path is not None:
        return VocabularyFiles(config.tokenizer_path).load(config.end_of_text)
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    train = (document for split, document in pairs() if split == TRAIN)
    texts = (document.text for document in limited(train, BPE_TRAINING_BYTES))
    return train_bpe(texts, config.bpe_vocab_size)


def _read_tokenizer(config: DataConfig, serialized: str) -> Tokenizer:
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if config.tokenizer == "bpe":
        return VocabularyTokenizer(serialized)
    return VocabularyTokenizer(serialized, config.end_of_text)


def _write_tokens(new: NewEntry, pairs: _Pairs, tokenizer: Tokenizer) -> dict[str, Any]:
    """Writes tokens and tokenizer; returns the entry's facts.

    Raises:
        ConfigError: There is no text, or the tokenizer makes end-of-text of some.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    end = np.array([tokenizer.end_of_text], dtype)
    digests = {split: DocumentDigest() for split in SPLITS}
    counts = dict.fromkeys(SPLITS, 0)
    read_bytes = 0
    for batch in batched(pairs):
        ids_of = tokenizer.encode([document.text for _, document in batch])
        for (split, document), ids in zip(batch, ids_of, strict=True):
            if (ids == tokenizer.end_of_text).any():
                raise ConfigError(
                    f"data.end_of_text: the text of {document.name} gives token "
                    f"{tokenizer.end_of_text}, which is to close documents. Mark it as "
                    "special in tokenizer.json, or choose another"
                )
            digests[split].add(document)
            counts[split] += len(ids) + 1
            new.append(f"{split}.tokens", np.concatenate([ids.astype(dtype), end]))
            new.append(f"{split}.ends", np.array([counts[split]], "<u8"))
            before, read_bytes = read_bytes, read_bytes + len(document.text)
            if before // _MESSAGE_BYTES < read_bytes // _MESSAGE_BYTES:
                logger.info("%.1f GB of text read", read_bytes / 1e9)
    if not read_bytes:
        raise ConfigError("there is no text in it. Give a corpus with text")
    serialized = tokenizer.serialize()
    (new.folder / "tokenizer.json").write_text(serialized)
    own = [serialized, tokenizer.end_of_text]
    return {
        "digest": _digest([*(d.hexdigest() for d in digests.values()), *own]),
        "tokenizer_digest": _digest(own),
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
    }


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
