"""Where documents come from: the standard library, local files.

Every corpus yields its documents in an order given by a hash of their names, so that
reading only a part of it (``data.max_corpus_bytes``) still reads a fair sample.
"""

import glob
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from swarm_jax.config import DataConfig
from swarm_jax.errors import ConfigError

_NO_STDLIB_TEXT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


@dataclass(frozen=True, slots=True)
class Document:
    """One text. ``name`` is unique in its corpus; ``text`` is valid UTF-8."""

    name: str
    text: bytes


class Corpus(Protocol):
    """A source of documents that can be read more than once."""

    def identity(self) -> str:
        """Names the content: equal for equal documents, on any machine."""
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

    def __init__(self, root: Path, paths: Iterable[Path], max_bytes: int | None = None):
        named = [(_name(path.relative_to(root)), path) for path in paths]
        self._files = sorted(named, key=lambda item: hash_of(item[0], "order"))
        self._max_bytes = max_bytes

    def identity(self) -> str:
        return digest_of(self.documents())

    def documents(self) -> Iterator[Document]:
        """Reads the files.

        Raises:
            ConfigError: One of them cannot be read.
        """
        every = (Document(name, _read(path)) for name, path in self._files)
        return limited(every, self._max_bytes)


def open_corpus(config: DataConfig) -> Corpus:
    """Finds the corpus that ``data.corpus`` names.

    Raises:
        ConfigError: There is no such folder, file or dataset.
    """
    kind, _, where = config.corpus.partition(":")
    if kind == "stdlib":
        stdlib = Path(sysconfig.get_path("stdlib"))
        return stdlib_corpus(stdlib, config.max_corpus_bytes)
    if kind == "files":
        return files_corpus(where, config.max_corpus_bytes)
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
        for path in _walk(root, skip=_NO_STDLIB_TEXT)
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
    folder = Path(where).expanduser()
    if folder.is_dir():
        paths = list(_walk(folder))
        if not paths:
            raise ConfigError(f"data.corpus: the folder {folder} has no files in it")
        return FileCorpus(folder, paths, max_bytes)
    found = [Path(path) for path in glob.glob(str(folder), recursive=True)]
    paths = [path for path in found if path.is_file()]
    if not paths:
        problem = "no file matches" if glob.has_magic(where) else "there is no folder"
        raise ConfigError(
            f"data.corpus: {problem} {where!r} (seen from {Path.cwd()}). Use "
            "'files:FOLDER' or 'files:GLOB', such as 'files:~/books/**/*.txt'"
        )
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return FileCorpus(root, paths, max_bytes)


def held_out_names(names: Sequence[str], fraction: float) -> set[str]:
    """The documents kept for validation: those whose name has a small hash.

    A document stays on its side when others are added or removed. Where chance would
    leave a side without any, the document nearest to it changes over.

    Raises:
        ConfigError: There are fewer than two documents to divide.
    """
    if len(names) < 2:
        raise ConfigError(
            f"data.corpus: {len(names)} file(s) with text in it, but a corpus needs 2 "
            "or more, since whole files are held out for validation. Split a long "
            "file: split -C 100k BOOK.txt FOLDER/part_"
        )
    ranked = sorted((hash_of(name, "held out"), name) for name in names)
    held_out = [name for value, name in ranked if value < fraction * 2**64]
    if not held_out:
        held_out = [ranked[0][1]]
    elif len(held_out) == len(names):
        held_out.pop()
    return set(held_out)


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


def digest_of(documents: Iterable[Document]) -> str:
    """SHA-256 over names and texts, each with its length."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.name.encode(), document.text):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def hash_of(name: str, purpose: str) -> int:
    """64 bits of SHA-256, independent for each purpose."""
    digest = hashlib.sha256(f"{purpose}\0{name}".encode())
    return int.from_bytes(digest.digest()[:8], "big")


def utf8(raw: bytes) -> bytes:
    """``raw`` with whatever is no UTF-8 replaced by U+FFFD."""
    return raw.decode(errors="replace").encode()


def _name(path: Path) -> str:
    return utf8(os.fsencode(path.as_posix())).decode()


def _read(path: Path) -> bytes:
    try:
        return utf8(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"data.corpus: cannot read {path}: {error.strerror}. Make it readable or "
            "take it out of the corpus"
        ) from error


def _walk(root: Path, skip: Iterable[str] = ()) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in skip and not f.startswith(".")]
        paths = (Path(folder, file) for file in files if not file.startswith("."))
        yield from (path for path in paths if path.is_file())
