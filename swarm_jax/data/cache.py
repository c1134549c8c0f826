"""Builds the local TFDS dataset and its token streams, whole or not at all.

A cache entry is a folder, named by everything that determines it::

    dataset_info.json, features.json, corpus-SPLIT.array_record-*   the documents (TFDS)
    tokenizer.json         the tokenizer
    SPLIT.tokens           ids, each document closed with end-of-text; little-endian
    manifest.json          digest, vocabulary, dtype and number of tokens

It is built under another name and renamed when complete. So a killed build is never
read, and when two processes build at once, the later one throws its own copy away.
"""

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from swarm_jax.config import DataConfig
from swarm_jax.data.corpus import (
    Corpus,
    Document,
    digest_of,
    held_out_names,
    open_corpus,
)
from swarm_jax.data.local_tfds import (
    SPLITS,
    TRAIN,
    VALIDATION,
    batched,
    read_tfds,
    write_tfds,
)
from swarm_jax.data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    train_bpe,
)
from swarm_jax.errors import ConfigError

FORMAT = 1
"""Part of every key: raise it when the same settings would give other files."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Attributes:
    digest: SHA-256 of all documents, their split and the tokenizer.
    vocab_size: Of the tokenizer.
    dtype: Of the token files.
    num_tokens: By split.
    """

    digest: str
    vocab_size: int
    dtype: str
    num_tokens: dict[str, int]


def cached_tokens(
    config: DataConfig, cache_dir: Path
) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Token streams of both splits, built first if they are not in the cache.

    Returns:
        The manifest, and by split a memory-mapped array [num_tokens].

    Raises:
        ConfigError: The corpus cannot be read or divided.
    """
    corpus = open_corpus(config)
    folder = cache_dir / _key(config, corpus)
    if not _is_complete(folder):
        _build(config, corpus, folder)
    manifest = _read_manifest(folder)
    tokens = {
        split: np.memmap(
            folder / f"{split}.tokens", manifest.dtype, "r", shape=(count,)
        )
        for split, count in manifest.num_tokens.items()
    }
    return manifest, tokens


def cached_tokenizer(config: DataConfig, cache_dir: Path) -> Tokenizer:
    """The tokenizer of the data; the cache entry is built first if it is not there.

    Raises:
        ConfigError: The corpus cannot be read or divided.
    """
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    cached_tokens(config, cache_dir)
    folder = cache_dir / _key(config, open_corpus(config))
    return BPETokenizer((folder / "tokenizer.json").read_text())


def _key(config: DataConfig, corpus: Corpus) -> str:
    tokenizer = config.tokenizer
    if tokenizer == "bpe":
        tokenizer += str(config.bpe_vocab_size)
    parts = [FORMAT, corpus.identity(), tokenizer, config.held_out_fraction]
    return f"tokens-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


def _is_complete(folder: Path) -> bool:
    """Whether all is there. A power failure can cut files that were renamed before."""
    try:
        manifest = _read_manifest(folder)
        sizes = {
            split: (folder / f"{split}.tokens").stat().st_size
            for split in manifest.num_tokens
        }
    except (OSError, ValueError, TypeError):
        return False
    item_bytes = np.dtype(manifest.dtype).itemsize
    return sizes == {s: item_bytes * n for s, n in manifest.num_tokens.items()}


def _read_manifest(folder: Path) -> Manifest:
    return Manifest(**json.loads((folder / "manifest.json").read_text()))


def _build(config: DataConfig, corpus: Corpus, folder: Path) -> None:
    partial = _make_partial(folder.parent)
    try:
        _fill(partial, config, corpus)
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(folder: Path, config: DataConfig, corpus: Corpus) -> None:
    names = [document.name for document in corpus.documents()]
    held_out = held_out_names(names, config.held_out_fraction)
    write_tfds(
        folder,
        (
            (VALIDATION if document.name in held_out else TRAIN, document)
            for document in corpus.documents()
        ),
    )
    tokenizer = _make_tokenizer(config, folder)
    (folder / "tokenizer.json").write_text(tokenizer.serialize())
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    num_tokens = {
        split: _write_tokens(
            folder / f"{split}.tokens", read_tfds(folder, split), tokenizer, dtype
        )
        for split in SPLITS
    }
    manifest = Manifest(
        _digest(folder, tokenizer), tokenizer.vocab_size, dtype.str, num_tokens
    )
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2))


def _make_tokenizer(config: DataConfig, folder: Path) -> Tokenizer:
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    texts = (document.text for document in read_tfds(folder, TRAIN))
    return train_bpe(texts, config.bpe_vocab_size)


def _digest(folder: Path, tokenizer: Tokenizer) -> str:
    parts = [digest_of(read_tfds(folder, split)) for split in SPLITS]
    text = json.dumps([*parts, tokenizer.serialize()])
    return hashlib.sha256(text.encode()).hexdigest()


def _write_tokens(
    path: Path, documents: Iterable[Document], tokenizer: Tokenizer, dtype: np.dtype
) -> int:
    num_tokens = 0
    end = np.array([tokenizer.end_of_text], dtype)
    with path.open("wb") as file:
        for batch in batched(documents):
            for ids in tokenizer.encode([document.text for document in batch]):
                file.write(ids.astype(dtype).tobytes())
                file.write(end.tobytes())
                num_tokens += len(ids) + 1
    return num_tokens


def _publish(partial: Path, folder: Path) -> None:
    if folder.exists() and not _is_complete(folder):
        shutil.rmtree(folder)
    try:
        partial.rename(folder)
    except OSError:
        if not _is_complete(folder):
            raise


def _make_partial(cache_dir: Path) -> Path:
    partial = cache_dir / f"{_partial_prefix()}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache_dir)
        partial.mkdir()
    except OSError as error:
        raise ConfigError(
            f"Cannot write to the data cache {cache_dir}: {error.strerror}. Make it "
            "writable or choose another folder"
        ) from error
    return partial


def _partial_prefix() -> str:
    return f".partial-{socket.gethostname()}-"


def _remove_abandoned(cache_dir: Path) -> None:
    """Removes what killed builds of this host have left."""
    for path in cache_dir.glob(f"{_partial_prefix()}*"):
        pid = int(path.name.rsplit("-", 2)[1])
        if not _is_running(pid):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It runs, but is somebody else's.
    return True
