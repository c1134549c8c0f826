"""Swarm checkpoints in a folder: local, shared, or any path that Orbax takes.

``step_folder.py`` says what is in it. One checkpoint is the parts of all stages at one
step. A folder may hold one stage's part alone, as a server's own does: its markers name
all stages nevertheless.
"""

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from swarm_jax.errors import CheckpointError
from swarm_jax.stage.layer_files import Unreadable
from swarm_jax.stage.layered import (
    TIED,
    Arrays,
    Layers,
    nested,
    stored_as,
    tied_layer,
)
from swarm_jax.stage.manifests import Manifest, Marker, Saved, describe
from swarm_jax.stage.step_folder import Part, StepFolder

logger = logging.getLogger(__name__)

_STEP = "step_"
_NAME = "folder_name"


class CheckpointFolder:
    """Saves and restores; every method blocks until the disk is done.

    Args:
        root: Made when something is saved.
        model_fingerprint: Of the experiment; checkpoints of another one are refused.
            None takes any: to read, not to save.
        keep_last: How many of the newest checkpoints are kept.
        keep_every_steps: Those of steps that this divides are kept for ever; 0: none.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        model_fingerprint: str | None,
        keep_last: int = 3,
        keep_every_steps: int = 0,
    ):
        assert keep_last >= 1, keep_last
        root = os.fspath(root)
        self.root = epath.Path(root if "://" in root else os.path.abspath(root))
        self.model_fingerprint = model_fingerprint
        self._keep_last = keep_last
        self._keep_every_steps = keep_every_steps

    def save(
        self,
        stage: int,
        num_stages: int,
        saved: Saved,
        layers: Mapping[str, Mapping[str, np.ndarray]],
        shared: Mapping[str, np.ndarray],
    ) -> str:
        """Writes one stage's part of a checkpoint.

        Returns:
            The manifest's digest, equal for equal parameters whoever writes them.

        Raises:
            CheckpointError: It was not saved; what was written of it is removed.
        """
        fingerprint = self.model_fingerprint
        manifest = describe(stage, num_stages, fingerprint, saved, layers, shared)
        self.write(manifest, layers)
        return manifest.digest

    def write(
        self, manifest: Manifest, layers: Mapping[str, Mapping[str, np.ndarray]]
    ) -> None:
        """``save`` of what is described already."""
        step, stage = manifest.saved.step, manifest.stage
        with self._writing(f"step {step} of stage {stage} was not saved"):
            self._step(step).write_part(manifest, layers)

    def complete(
        self,
        step: int,
        generation: int,
        digests: Mapping[int, str],
        *,
        config: Mapping[str, Any],
        summary: Mapping[str, Any],
    ) -> None:
        """Makes the saved parts of a step a checkpoint; removes what is not to be kept.

        Nothing happens where none of the parts is held. Several writers may do this; of
        different markers for one step the last one stays.

        Args:
            digests: Of the manifest of each stage.
            config: Of the experiment; it is shown to whom the fingerprint keeps out.
            summary: Metrics, for people.

        Raises:
            CheckpointError: It could not be written, or older ones not be removed.
        """
        fingerprint = self.model_fingerprint
        marker = Marker(step, generation, dict(digests), fingerprint, config, summary)
        folder = self._step(step)
        with self._writing(f"step {step} was not marked complete"):
            layers = _layers(folder.parts(marker).values())
            older = [other for other in self.steps(layers) if other < step]
            if layers and folder.write_marker(marker):
                self._prune([*older, step])

    def name(self) -> str:
        """The same for all who use this folder, whatever path leads them to it.

        Raises:
            CheckpointError: Nothing can be written there.
        """
        path = self.root / _NAME
        with self._writing("no checkpoint can be saved"):
            if not path.exists():
                self.root.mkdir(parents=True, exist_ok=True)
                path.write_text(uuid.uuid4().hex)
            return path.read_text().strip()

    def holds(self, step: int, digests: Mapping[int, str], stage: int) -> bool:
        """Whether that stage's part, with that digest, is here."""
        if stage not in digests:
            return False
        try:
            return self._step(step).part(stage, digests[stage]) is not None
        except Unreadable as reason:
            logger.warning("%s", reason)
            return False

    def steps(self, layers: Collection[str] | None = None) -> list[int]:
        """Steps that can be restored from here, ascending.

        Args:
            layers: What is to be restored; None: everything.

        Raises:
            CheckpointError: The folder cannot be read, or a checkpoint in it is of
                another experiment.
        """
        try:
            return [step for step in self._numbers() if self._can_load(step, layers)]
        except OSError as error:
            raise CheckpointError(f"{self.root} cannot be read: {error}") from error

    def load(self, step: int, names: Sequence[str]) -> tuple[Saved, Layers, Arrays]:
        """Reads layers and verifies every hash.

        Returns:
            ``(saved, layers, shared)``. The layers of a stage as it was then have its
            lineage; others have one that follows from the checkpoint and the names.

        Raises:
            CheckpointError: It is not here, damaged, or of another experiment.
        """
        with self._reading(step, names):
            marker, parts = self._complete_parts(step)
            owners = {name: part for part in parts for name in part.manifest.layers}
            sources = {name: stored_as(name, owners) for name in names}
            if missing := [name for name in sources.values() if name not in owners]:
                raise Unreadable(f"{', '.join(missing)} not there")
            layers = {name: owners[at].read(at) for name, at in sources.items()}
            if TIED in layers:
                layers[TIED] = tied_layer(layers[TIED])
            saved, shared = _agreed([owners[at].manifest for at in sources.values()])
            if not any(part.manifest.layers.keys() == set(names) for part in parts):
                lineage = _derived_lineage(marker, names)
                saved = Saved(step, saved.generation, lineage, saved.last_commit)
            return saved, layers, shared

    def load_params(self, step: int) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """The parameters of all layers as nested dicts, and the experiment's config.

        Without "tied", which is a copy for a stage of its own.

        Raises:
            CheckpointError: As ``load``.
        """
        with self._reading(step, None):
            marker, parts = self._complete_parts(step)
            if len(parts) != len(marker.stages):
                raise Unreadable("only some of its stages are here")
            layers = {
                name: nested(part.read(name, "params"))["params"]
                for part in parts
                for name in part.manifest.layers
                if name != TIED
            }
            return layers, marker.config

    def _complete_parts(self, step: int) -> tuple[Marker, list[Part]]:
        marker = self._marker(step)
        if marker is None:
            raise Unreadable("it is not complete")
        parts = list(self._step(step).parts(marker).values())
        for part in parts:
            saved = part.manifest.saved
            if (saved.step, saved.generation) != (step, marker.generation):
                raise Unreadable(
                    f"{part.folder} is of step {saved.step}, generation "
                    f"{saved.generation}"
                )
        return marker, parts

    def _can_load(self, step: int, layers: Collection[str] | None) -> bool:
        try:
            marker = self._marker(step)
            parts = {} if marker is None else self._step(step).parts(marker)
        except Unreadable as reason:
            logger.warning("Step %d is left out: %s", step, reason)
            return False
        if marker is None:
            return False
        if layers is None:
            return len(parts) == len(marker.stages)
        found = _layers(parts.values())
        return found >= {stored_as(name, found) for name in layers}

    def _marker(self, step: int) -> Marker | None:
        folder = self._step(step)
        marker = folder.marker()
        if marker is None or self.model_fingerprint in (None, marker.model_fingerprint):
            return marker
        raise CheckpointError(
            f"{folder.path} is of another experiment: its model fingerprint is "
            f"{marker.model_fingerprint}, this one's {self.model_fingerprint}. Name "
            f"another folder, or go on with the config in {folder.marker_path}"
        )

    def _prune(self, complete: Sequence[int]) -> None:
        """Removes what is older than the last of these and not to be kept.

        Of that step itself nothing goes, nor of later ones: others may be saving them.
        """
        kept = kept_steps(complete, self._keep_last, self._keep_every_steps)
        for step in self._numbers():
            if step >= complete[-1]:
                continue
            marker = self._marker(step) if step in kept else None
            if marker is None:
                self._step(step).remove()
            else:
                self._step(step).remove_unnamed(marker)

    def _numbers(self) -> list[int]:
        if not self.root.exists():
            return []
        names = [path.name for path in self.root.iterdir()]
        numbers = [name.removeprefix(_STEP) for name in names if name.startswith(_STEP)]
        return sorted(int(number) for number in numbers if number.isdigit())

    def _step(self, step: int) -> StepFolder:
        return StepFolder(self.root / f"{_STEP}{step:08d}")

    @contextlib.contextmanager
    def _writing(self, failure: str) -> Iterator[None]:
        """Explains the disk's errors; tensorstore's own are ValueErrors."""
        try:
            yield
        except (OSError, ValueError, Unreadable) as error:
            raise CheckpointError(
                f"{failure} in {self.root}: {error}. See to it that there is room and "
                "that it may be written to: the next save tries again"
            ) from error

    @contextlib.contextmanager
    def _reading(self, step: int, layers: Collection[str] | None) -> Iterator[None]:
        try:
            yield
        except (OSError, Unreadable) as reason:
            others = [other for other in self.steps(layers) if other < step]
            older = f"Step {others[-1]} is there" if others else "No older one is there"
            raise CheckpointError(
                f"step {step} in {self.root} cannot be restored: {reason}. {older}"
            ) from reason


def load_params(
    root: str | os.PathLike, step: int | None = None
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Parameters of the whole model, to evaluate or to convert.

    Args:
        step: None: the newest.

    Returns:
        ``(layers, config)``: a tree of parameters for each layer, as
        ``models.functional.from_layers`` takes them, and the experiment's config.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    folder = CheckpointFolder(root, model_fingerprint=None)
    if step is None:
        steps = folder.steps()
        if not steps:
            raise CheckpointError(f"there is no complete checkpoint in {folder.root}")
        step = steps[-1]
    return folder.load_params(step)


def kept_steps(
    complete: Sequence[int], keep_last: int, keep_every_steps: int
) -> set[int]:
    """Which of these checkpoints, in ascending order, are kept.

    That of step 0 always: it holds imported parameters, which no seed makes again.
    """
    every = {s for s in complete if keep_every_steps and s % keep_every_steps == 0}
    start = {0} & set(complete)
    return start | every | set(complete[-keep_last:])


def _layers(parts: Collection[Part]) -> set[str]:
    return {name for part in parts for name in part.manifest.layers}


def _agreed(manifests: Sequence[Manifest]) -> tuple[Saved, Arrays]:
    """What is not a layer's: stages have committed the same steps."""
    first = manifests[0]
    for other in manifests[1:]:
        if (other.saved.last_commit, other.shared) != (
            first.saved.last_commit,
            first.shared,
        ):
            raise Unreadable(f"stages {first.stage} and {other.stage} do not agree")
    return first.saved, first.shared_arrays()


def _derived_lineage(marker: Marker, names: Collection[str]) -> str:
    parts = sorted(marker.stages.values()), sorted(names)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
