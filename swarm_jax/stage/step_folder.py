"""What is on the disk of one step: stages' parts, and the marker that joins them.

    stage_0.<save id>/layers.3/    one layer: an Orbax checkpoint
    stage_0.<digest>.json          the manifest of stage 0
    complete.json                  the marker

Each is written after what it names. A save has a folder of its own and a manifest has
its digest in its name, so no writer ever changes what another's marker names, and one
that is killed leaves only what nothing names.
"""

import contextlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from etils import epath

from swarm_jax.stage.layer_files import Unreadable, read_layer, write_layer
from swarm_jax.stage.layered import Arrays
from swarm_jax.stage.manifests import Manifest, Marker, parse_manifest, parse_marker

MARKER = "complete.json"


@dataclass(frozen=True, slots=True)
class Part:
    """One stage's part: what it should be and where it is."""

    manifest: Manifest
    folder: epath.Path

    def read(self, layer: str, beginning: str = "") -> Arrays:
        """A layer's arrays, those whose names begin so; verifies their hashes.

        Raises:
            Unreadable: They are not those that were written.
        """
        records = self.manifest.layers[layer].items()
        wanted = {
            name: record for name, record in records if name.startswith(beginning)
        }
        return read_layer(self.folder / layer, wanted)


class StepFolder:
    """One step's folder, which need not be there.

    Args:
        path: Absolute.
    """

    def __init__(self, path: epath.Path):
        self.path = path

    @property
    def marker_path(self) -> epath.Path:
        return self.path / MARKER

    def marker(self) -> Marker | None:
        """None if the step is not complete.

        Raises:
            Unreadable: It is damaged.
        """
        text = _read(self.marker_path)
        return None if text is None else _parsed(self.marker_path, parse_marker, text)

    def part(self, stage: int, digest: str) -> Part | None:
        """The part of that stage with that digest, if it is here.

        Raises:
            Unreadable: Its manifest is damaged.
        """
        path = self.path / _manifest_name(stage, digest)
        text = _read(path)
        if text is None:
            return None
        manifest, folder = _parsed(path, parse_manifest, text, digest)
        return Part(manifest, self.path / folder)

    def parts(self, marker: Marker) -> dict[int, Part]:
        """By stage, the parts that the marker names and that are here."""
        found = {stage: self.part(stage, d) for stage, d in marker.stages.items()}
        return {stage: part for stage, part in found.items() if part is not None}

    def write_part(
        self, manifest: Manifest, layers: Mapping[str, Mapping[str, np.ndarray]]
    ) -> None:
        """Writes all or, if that fails, nothing."""
        folder = self.path / f"stage_{manifest.stage}.{_new_id()}"
        folder.mkdir(parents=True)
        try:
            for name, arrays in layers.items():
                write_layer(folder / name, arrays)
            name = _manifest_name(manifest.stage, manifest.digest)
            _write(self.path / name, manifest.to_json(folder.name))
        except BaseException:
            _remove(folder)
            raise

    def write_marker(self, marker: Marker) -> bool:
        """False if this very marker is there already."""
        text = marker.to_json()
        if _read(self.marker_path) == text.encode():
            return False
        _write(self.marker_path, text)
        return True

    def remove(self) -> None:
        """The marker first: half a checkpoint must not look like one."""
        self.marker_path.unlink(missing_ok=True)
        _remove(self.path)

    def remove_unnamed(self, marker: Marker) -> None:
        """Removes what this marker does not name."""
        named = {MARKER}
        for stage, part in self.parts(marker).items():
            named |= {part.folder.name, _manifest_name(stage, marker.stages[stage])}
        for path in self.path.iterdir():
            if path.name not in named:
                _remove(path)


def _manifest_name(stage: int, digest: str) -> str:
    return f"stage_{stage}.{digest}.json"


def _new_id() -> str:
    return uuid.uuid4().hex[:12]


def _read(path: epath.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parsed(path: epath.Path, parse, *arguments):
    try:
        return parse(*arguments)
    except Unreadable as reason:
        raise Unreadable(f"{path}: {reason}") from None


def _write(path: epath.Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.parent / f"{path.name}.{_new_id()}.partial"
    partial.write_text(text)
    partial.replace(path)


def _remove(path: epath.Path) -> None:
    """Another writer may be removing the same."""
    with contextlib.suppress(FileNotFoundError):
        path.rmtree() if path.is_dir() else path.unlink()
