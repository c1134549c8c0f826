"""Entries of the data cache: folders of arrays, whole or not at all.

An entry is built under another name and renamed when complete. So a killed build is
never read, and when two processes build at once, the later one throws its own copy
away. Arrays are written as they come and read memory-mapped: neither needs memory for
all of one. Beside them lies::

    manifest.json    what the builder says of the entry; dtype and length of each array
"""

import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swarm_jax.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Entry:
    """Attributes:
    folder: Where it lies.
    facts: What its builder says of it.
    arrays: Memory-mapped, by name.
    """

    folder: Path
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]


class NewEntry:
    """An entry while it is built.

    Attributes:
        folder: For files beside the arrays.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._arrays: dict[str, list[Any]] = {}
        self._open = ExitStack()

    def __enter__(self) -> "NewEntry":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def append(self, name: str, values: np.ndarray) -> None:
        """Adds to the end of a one-dimensional array, whose dtype never changes."""
        if name not in self._files:
            file = self._open.enter_context((self.folder / name).open("wb"))
            self._files[name] = file
            self._arrays[name] = [values.dtype.str, 0]
        assert self._arrays[name][0] == values.dtype.str
        self._files[name].write(values.tobytes())
        self._arrays[name][1] += len(values)

    def finish(self, facts: dict[str, Any]) -> None:
        self._open.close()
        manifest = {"facts": facts, "arrays": self._arrays}
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def open_entry(folder: Path, fill: Callable[[NewEntry], dict[str, Any]]) -> Entry:
    """Opens the entry at ``folder``; if there is none, builds it.

    Args:
        folder: Its name holds everything that determines the entry.
        fill: Writes the arrays, and returns the facts.

    Raises:
        ConfigError: The folder cannot be written to, or has no space left.
    """
    if not _is_complete(folder):
        _build(folder, fill)
    manifest = _read_manifest(folder)
    arrays = {
        name: _map(folder / name, dtype, count)
        for name, (dtype, count) in manifest["arrays"].items()
    }
    return Entry(folder, manifest["facts"], arrays)


def _read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def _is_complete(folder: Path) -> bool:
    """Whether all is there. A power failure can cut files that were renamed before."""
    try:
        return all(
            (folder / name).stat().st_size == np.dtype(dtype).itemsize * count
            for name, (dtype, count) in _read_manifest(folder)["arrays"].items()
        )
    except (OSError, ValueError):
        return False


def _map(path: Path, dtype: str, count: int) -> np.ndarray:
    if not count:  # which cannot be mapped
        return np.empty(0, dtype)
    # A plain view of it: slices of a memmap take several times as long.
    return np.asarray(np.memmap(path, dtype, "r", shape=(count,)))


def _build(folder: Path, fill: Callable[[NewEntry], dict[str, Any]]) -> None:
    partial = _make_partial(folder.parent)
    try:
        with NewEntry(partial) as entry:
            entry.finish(fill(entry))
        _publish(partial, folder)
    except OSError as error:
        raise _cannot_write(folder.parent, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
        raise _cannot_write(cache_dir, error) from error
    return partial


def _cannot_write(cache_dir: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"Cannot write to the data cache {cache_dir}: {error.strerror or error}. Make "
        "it writable, make room, or choose another folder (--cache_dir)"
    )


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
