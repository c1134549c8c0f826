"""What is written beside the arrays of a swarm checkpoint.

A stage's manifest says what its writer wrote; the marker names one manifest of each
stage, by digest, and so makes them one checkpoint.
"""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from swarm_jax.stage.layer_files import ArrayRecord, Unreadable


@dataclass(frozen=True, slots=True)
class Saved:
    """Which parameters these are.

    Attributes:
        last_commit: (step, gradient norm or None if it was skipped), if any.
    """

    step: int
    generation: int
    lineage: str
    last_commit: tuple[int, float | None] | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One stage's part of a checkpoint, equal on all peers of one lineage.

    Attributes:
        layers: By layer and by array.
        shared: Arrays of no layer: dtype, shape, bytes in hex.
    """

    stage: int
    num_stages: int
    model_fingerprint: str
    saved: Saved
    layers: Mapping[str, Mapping[str, ArrayRecord]]
    shared: Mapping[str, tuple[str, tuple[int, ...], str]]

    @property
    def digest(self) -> str:
        return _digest(asdict(self))

    def to_json(self, folder: str) -> str:
        """The file's text; ``folder`` and versions are not part of the digest."""
        content = {"content": asdict(self), "folder": folder, "versions": _versions()}
        return _sealed(content)

    def shared_arrays(self) -> dict[str, np.ndarray]:
        return {
            name: np.frombuffer(bytes.fromhex(text), dtype).reshape(shape).copy()
            for name, (dtype, shape, text) in self.shared.items()
        }


def describe(
    stage: int,
    num_stages: int,
    model_fingerprint: str,
    saved: Saved,
    layers: Mapping[str, Mapping[str, np.ndarray]],
    shared: Mapping[str, np.ndarray],
) -> Manifest:
    """Hashes the arrays."""
    return Manifest(
        stage,
        num_stages,
        model_fingerprint,
        saved,
        {
            layer: {name: ArrayRecord.of(array) for name, array in arrays.items()}
            for layer, arrays in layers.items()
        },
        {
            name: (array.dtype.name, array.shape, array.tobytes().hex())
            for name, array in shared.items()
        },
    )


def parse_manifest(text: bytes, digest: str) -> tuple[Manifest, str]:
    """The manifest and the name of the folder with its layers.

    Raises:
        Unreadable: It is damaged or not the one of that digest.
    """
    file = _unsealed(text)
    content = file["content"]
    if _digest(content) != digest:
        raise Unreadable("it is not the manifest that its name says")
    position = content["saved"]
    committed = position["last_commit"]
    return (
        Manifest(
            content["stage"],
            content["num_stages"],
            content["model_fingerprint"],
            Saved(**position | {"last_commit": committed and tuple(committed)}),
            {
                layer: {
                    name: ArrayRecord(
                        record["dtype"], tuple(record["shape"]), record["sha256"]
                    )
                    for name, record in records.items()
                }
                for layer, records in content["layers"].items()
            },
            {
                name: (dtype, tuple(shape), value)
                for name, (dtype, shape, value) in content["shared"].items()
            },
        ),
        file["folder"],
    )


@dataclass(frozen=True, slots=True)
class Marker:
    """Makes the stages' parts one checkpoint.

    Attributes:
        stages: The digest of each stage's manifest.
        config: Of the experiment that was trained.
        summary: Metrics, for people.
    """

    step: int
    generation: int
    stages: Mapping[int, str]
    model_fingerprint: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    def to_json(self) -> str:
        return _sealed(asdict(self))


def parse_marker(text: bytes) -> Marker:
    """Raises:
    Unreadable: It is damaged.
    """
    content = _unsealed(text)
    content["stages"] = {int(stage): d for stage, d in content["stages"].items()}
    return Marker(**content)


def _sealed(content: Mapping[str, Any]) -> str:
    """As JSON, with its hash."""
    content = json.loads(json.dumps(content))  # keys are strings, tuples lists
    return json.dumps(content | {"sha256": _digest(content)}, indent=1)


def _unsealed(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
        digest = content.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"it is damaged ({type(error).__name__}: {error})") from None
    if _digest(content) != digest:
        raise Unreadable("its content is not that of its hash")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@functools.cache
def _versions() -> dict[str, str]:
    names = ("jax", "numpy", "optax", "orbax-checkpoint")
    return {name: importlib.metadata.version(name) for name in names}
