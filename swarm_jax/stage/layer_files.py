"""One layer's arrays as an Orbax checkpoint of its own.

Uncompressed and without OCDBT: an array is a folder with its description and one chunk.
OCDBT makes fewer files and takes longer; compression gains little on such floats. Orbax
is imported when first used: that takes long.
"""

import functools
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from swarm_jax.stage.layered import nested


class Unreadable(Exception):
    """What is on the disk is not what was written."""


@dataclass(frozen=True, slots=True)
class ArrayRecord:
    """What an array must be when it is read again."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @classmethod
    def of(cls, array: np.ndarray) -> "ArrayRecord":
        return cls(array.dtype.name, array.shape, sha256(array))


def sha256(array: np.ndarray) -> str:
    """Of the elements' bytes; other threads run meanwhile."""
    as_bytes = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(as_bytes).hexdigest()


def write_layer(folder: os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a new folder with these arrays, by names like "params/output/kernel".

    It takes memory for one more copy of the layer.
    """
    orbax, checkpointer = _orbax()
    checkpointer.save(folder, args=orbax.args.PyTreeSave(nested(arrays)))


def read_layer(
    folder: os.PathLike, records: Mapping[str, ArrayRecord]
) -> dict[str, np.ndarray]:
    """Reads these arrays and no others.

    Raises:
        Unreadable: An array is not there or not the one that was written.
    """
    orbax, checkpointer = _orbax()
    as_numpy = nested({name: orbax.RestoreArgs(np.ndarray) for name in records})
    item = nested(dict.fromkeys(records, 0))
    try:
        tree = checkpointer.restore(
            folder,
            args=orbax.args.PyTreeRestore(item, as_numpy, partial_restore=True),
        )
    # Orbax lets through whatever its parsers raise on damaged files. It closes its loop
    # while other arrays come in: "Event loop is closed" is then printed, and no harm.
    except Exception as error:
        raise Unreadable(f"{folder}: {type(error).__name__}: {error}") from error
    arrays = {name: _at(tree, name) for name in records}
    for name, record in records.items():
        if ArrayRecord.of(arrays[name]) != record:
            raise Unreadable(f"{folder}: the bytes of {name} are not those of its hash")
    return arrays


def _at(tree: Any, name: str) -> np.ndarray:
    return functools.reduce(lambda node, key: node[key], name.split("/"), tree)


def _orbax():
    """The library, and a checkpointer for one thread."""
    orbax = _import_orbax()
    handler = orbax.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    return orbax, orbax.Checkpointer(handler)


@functools.cache
def _import_orbax():
    import orbax.checkpoint

    # It tells of every layer in a dozen lines, and warns that there is nothing of OCDBT
    # to merge.
    log = logging.getLogger("absl")
    log.setLevel(logging.WARNING)
    log.addFilter(lambda record: "Skipping merge of OCDBT" not in record.getMessage())
    return orbax.checkpoint
