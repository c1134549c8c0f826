"""Where documents come from: the standard library, local files.

Every corpus yields its documents in an order given by a hash of their names, so that
reading only a part of it (``data.max_corpus_bytes``) still reads a fair sample.
"""

import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from swarm_jax.config import DataConfig
from swarm_jax.data.paths import find_files, name_of, walk
from swarm_jax.errors import ConfigError

_NO_STDLIB_TEXT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


@dataclass(frozen=True, slots=True)
class Document:
    """One text. ``name`` is unique in its corpus; ``text`` is valid UTF-8."""

    name: str
    text: bytes


class Corpus(Protocol):
    """A source of documents that can be read more than once.

    Attributes:
        is_copied: Whether the cache keeps a copy of the documents. It needs none of
            those that lie in a few large files.
    """

    is_copied: bool

    def identity(self) -> str:
        """Changes whenever the documents do."""
        ...

    def documents(self) -> Iterator[Document]:
        """All non-empty documents, always in the same order."""
        ...


class FileCorpus:
    """Local text files; one file is one document, named by its path below ``root``.

    Args:
        root: Folder that names are relative to.
        paths: The files.
        max_bytes: Text to read at most; None for all of it.
    """

    is_copied = True

    def __init__(self, root: Path, paths: Iterable[Path], max_bytes: int | None = None):
        named = [(name_of(path.relative_to(root)), path) for path in paths]
        self._files = sorted(named, key=lambda item: hash_of(item[0], "order"))
        self._max_bytes = max_bytes

    def identity(self) -> str:
        digest = DocumentDigest()
        for document in self.documents():
            digest.add(document)
        return digest.hexdigest()

    def documents(self) -> Iterator[Document]:
        """Reads the files.

        Raises:
            ConfigError: One of them cannot be read.
        """
        every = (Document(name, _read(path)) for name, path in self._files)
        return limited(every, self._max_bytes)


def open_corpus(config: DataConfig, corpus: str) -> Corpus:
    """Finds a corpus.

    Args:
        config: How it is read.
        corpus: What ``data.corpus`` may be.

    Raises:
        ConfigError: There is no such folder, file or dataset.
    """
    kind, _, where = corpus.partition(":")
    if kind == "stdlib":
        stdlib = Path(sysconfig.get_path("stdlib"))
        return stdlib_corpus(stdlib, config.max_corpus_bytes)
    if kind == "files":
        return files_corpus(where, config.max_corpus_bytes)
    if kind == "jsonl":
        from swarm_jax.data.jsonl import JsonLinesCorpus

        return JsonLinesCorpus(
            where, config.text_field, config.on_broken_line, config.max_corpus_bytes
        )
    # Here, since it imports TFDS, which only this kind of corpus needs to open.
    from swarm_jax.data.catalogue import CatalogueCorpus

    return CatalogueCorpus(where, config.text_field, config.max_corpus_bytes)


def stdlib_corpus(root: Path, max_bytes: int | None = None) -> FileCorpus:
    """Python source below ``root``, without tests, installed packages and build data.

    Raises:
        ConfigError: There is none, as in interpreters that keep it in a zip file.
    """
    paths = [
        path
        for path in walk(root, skip=_NO_STDLIB_TEXT)
        # The one module that is generated for each build of the interpreter.
        if path.suffix == ".py" and not path.name.startswith("_sysconfigdata")
    ]
    if not paths:
        raise ConfigError(
            f"The interpreter's standard library has no source files in {root}. "
            "Use text of your own: --config.data.corpus=files:FOLDER"
        )
    return FileCorpus(root, paths, max_bytes)


def files_corpus(where: str, max_bytes: int | None = None) -> FileCorpus:
    """All files of a folder, hidden ones left out, or all files that a glob matches.

    Raises:
        ConfigError: No such folder, or no file in it, or none that matches.
    """
    return FileCorpus(*find_files("files", where), max_bytes)


class HeldOut:
    """The documents kept for validation: those whose name has a small hash.

    A document stays on its side when others are added or removed. Where chance would
    leave a side without any, the document nearest to it changes over.

    Args:
        names: Of all documents; read once, and not kept.
        fraction: Share of them to hold out.

    Raises:
        ConfigError: There are fewer than two documents to divide.
    """

    def __init__(self, names: Iterable[str], fraction: float):
        self._bound = fraction * 2**64
        count = held_out = 0
        lowest, highest = 2**64, 0
        for name in names:
            value = hash_of(name, "held out")
            count += 1
            held_out += value < self._bound
            lowest, highest = min(lowest, value), max(highest, value)
        if count < 2:
            raise ConfigError(
                f"data.corpus: {count} document(s) with text in it, but a corpus needs "
                "2 or more, since whole documents are held out for validation. Split a "
                "long file: split -C 100k BOOK.txt FOLDER/part_"
            )
        if not held_out:
            self._bound = lowest + 1
        elif held_out == count:
            self._bound = highest

    def __contains__(self, name: str) -> bool:
        return hash_of(name, "held out") < self._bound


def limited(documents: Iterable[Document], max_bytes: int | None) -> Iterator[Document]:
    """Non-empty documents up to ``max_bytes`` of text, the last one cut to fit."""
    left = sys.maxsize if max_bytes is None else max_bytes
    for document in documents:
        if len(document.text) > left:
            cut = document.text[:left].decode(errors="ignore").encode()
            if cut:
                yield Document(document.name, cut)
            return
        if document.text:
            yield document
            left -= len(document.text)


class DocumentDigest:
    """SHA-256 over names and texts, each with its length."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, document: Document) -> None:
        for part in (document.name.encode(), document.text):
            self._digest.update(len(part).to_bytes(8, "little"))
            self._digest.update(part)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def hash_of(name: str, purpose: str) -> int:
    """64 bits of SHA-256, independent for each purpose."""
    digest = hashlib.sha256(f"{purpose}\0{name}".encode())
    return int.from_bytes(digest.digest()[:8], "big")


def utf8(raw: bytes) -> bytes:
    """``raw`` with whatever is no UTF-8 replaced by U+FFFD."""
    return raw.decode(errors="replace").encode()


def _read(path: Path) -> bytes:
    try:
        return utf8(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"data.corpus: cannot read {path}: {error.strerror}. Make it readable or "
            "take it out of the corpus"
        ) from error
