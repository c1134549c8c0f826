"""Where documents come from: JSON lines, plain or compressed.

Each line is an object with the text in one field, such as the Pile's
``{"text": ..., "meta": ...}``. Shards are read as streams, one after the other, in an
order given by a hash of their names; a document is named by shard and line.
"""

import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from swarm_jax.data.compressed import open_stream
from swarm_jax.data.corpus import Document, hash_of, limited, utf8
from swarm_jax.data.paths import find_files, name_of
from swarm_jax.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 1 << 26
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


class JsonLinesCorpus:
    """Shards of JSON lines; one line is one document. Blank lines are left out.

    Args:
        where: A file, a folder (all its .jsonl, .jsonl.gz and .jsonl.zst) or a glob.
        text_field: Field of a line that holds its text.
        on_broken_line: "stop", or "skip" with a warning for each shard. Broken is what
            is no object of JSON, has no text in the field, or has 64 MiB or more.
        max_bytes: Text to read at most; None for all of it.

    Raises:
        ConfigError: There are no such files.
    """

    is_copied = False

    def __init__(
        self,
        where: str,
        text_field: str = "text",
        on_broken_line: str = "stop",
        max_bytes: int | None = None,
    ):
        root, paths = find_files("jsonl", where, SUFFIXES)
        named = [(name_of(path.relative_to(root)), path) for path in paths]
        self._shards = sorted(named, key=lambda item: hash_of(item[0], "order"))
        self._text_field = text_field
        self._on_broken_line = on_broken_line
        self._max_bytes = max_bytes
        self._warned: set[str] = set()

    def identity(self) -> str:
        """Names, sizes and times of the shards: to read them all would take long."""
        stats = [(name, path.stat()) for name, path in self._shards]
        shards = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        how = self._text_field, self._on_broken_line, self._max_bytes
        return json.dumps(["jsonl", *how, shards])

    def documents(self) -> Iterator[Document]:
        """Reads the shards.

        Raises:
            ConfigError: One cannot be read, or has a broken line that is not skipped.
        """
        every = (
            document
            for name, path in self._shards
            for document in self._read_shard(name, path)
        )
        return limited(every, self._max_bytes)

    def _read_shard(self, name: str, path: Path) -> Iterator[Document]:
        skipped, first = 0, ""
        for number, line in _numbered_lines(path):
            try:
                yield Document(f"{name}:{number}", _text_of(line, self._text_field))
            except ValueError as error:
                reason = f"{path}, line {number}: {error}"
                if self._on_broken_line == "stop":
                    raise ConfigError(
                        f"data.corpus: {reason}. Mend it, or skip such lines: "
                        "--config.data.on_broken_line=skip"
                    ) from error
                skipped, first = skipped + 1, first or reason
        if skipped and name not in self._warned:
            self._warned.add(name)
            logger.warning("%d broken lines skipped; the first: %s", skipped, first)


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines, counted from 1; of one that is too long, its beginning.

    Raises:
        ConfigError: The file cannot be read to its end.
    """
    try:
        with open_stream(path) as file:
            for number, line in enumerate(_bounded_lines(file), 1):
                if not line.isspace():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"data.corpus: cannot read {path}: {getattr(error, 'strerror', 0) or error}"
            ". Fetch it again, or take it out of the corpus"
        ) from error


def _bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES):
        rest = line
        while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        yield line


def _text_of(line: bytes, text_field: str) -> bytes:
    """Raises:
    ValueError: The line has no text.
    """
    if len(line) == MAX_LINE_BYTES:
        raise ValueError(f"it has {MAX_LINE_BYTES} bytes or more")
    try:
        record = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"it is no object but {_json_kind(record)}")
    text = record.get(text_field)
    if not isinstance(text, str):
        fields = _names(field for field, value in record.items() if type(value) is str)
        raise ValueError(
            f"it has no text in {text_field!r} (data.text_field), but in: {fields}"
        )
    return utf8(text.encode(errors="surrogatepass"))


def _json_kind(value: object) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(
        type(value), "a number or truth value"
    )


def _names(fields: Iterable[str]) -> str:
    return ", ".join(sorted(map(repr, fields))) or "none"
