"""One layer's arrays as an Orbax checkpoint of its own.

Uncompressed and without OCDBT: an array is a folder with one chunk. Beside 96 MB in 8
layers that wrote twice as fast as OCDBT, which packs an array of any size into more
files than these two; compression took as long again and saved 8 %.

Orbax is imported when first used: it takes as long as jax.
"""

import functools
import hashlib
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
    # Orbax lets through whatever its parsers raise on damaged files.
    except Exception as error:
        raise Unreadable(f"{folder}: {type(error).__name__}: {error}") from error
    arrays = {name: _at(tree, name) for name in records}
    for name, record in records.items():
        if ArrayRecord.of(arrays[name]) != record:
            raise Unreadable(f"{folder}: the bytes of {name} are not those of its hash")
    return arrays


def _at(tree: Any, name: str) -> np.ndarray:
    return functools.reduce(lambda node, key: node[key], name.split("/"), tree)


@functools.cache
def _orbax():
    import orbax.checkpoint

    handler = orbax.checkpoint.PyTreeCheckpointHandler(
        use_ocdbt=False, use_compression=False
    )
    return orbax.checkpoint, orbax.checkpoint.Checkpointer(handler)
