"""A stage's state on disk, for a server whose event loop must not wait for disks."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from swarm_jax.errors import CheckpointError
from swarm_jax.stage.checkpoints import CheckpointFolder
from swarm_jax.stage.layered import LayeredState
from swarm_jax.stage.manifests import Saved, describe

logger = logging.getLogger(__name__)


Loaded = tuple[int, int, str, tuple[int, float | None] | None, list[np.ndarray]]


class CommitRecord(Protocol):
    """How a step was committed; the norm is None when it was skipped."""

    step: int
    gradient_norm: float | None


class Position(Protocol):
    """Which parameters a server has."""

    generation: int
    step: int
    lineage: str
    last_commit: CommitRecord | None


class SavedStage:
    """What a stage server saves and restores; its work is done by a thread of its own.

    Args:
        layered: Of the server's stage.
        shared: Checkpoints of the whole swarm, if there is a place that all reach.
        own: This server's stage alone, in a place of its own, if it keeps that.
        config: Of the experiment; it goes into the checkpoints.

    Raises:
        CheckpointError: A folder has checkpoints of another experiment.
    """

    def __init__(
        self,
        layered: LayeredState,
        *,
        stage: int,
        num_stages: int,
        shared: CheckpointFolder | None,
        own: CheckpointFolder | None,
        config: Mapping[str, Any],
    ):
        self._layered = layered
        self._stage = stage
        self._num_stages = num_stages
        self._shared = shared
        self._own = own
        self._config = config
        self._folders = [folder for folder in (own, shared) if folder is not None]
        self._worker = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future | None = None
        self._steps: list[int] = []
        self._refresh()

    def steps(self) -> list[int]:
        """Steps that can be restored, ascending, as of the last ``refresh``."""
        return self._steps

    async def refresh(self) -> None:
        """Looks for what others have completed; ``complete`` does so as well."""
        await self._run(self._refresh)

    async def save(
        self, position: Position, state: Sequence[np.ndarray], *, to_shared: bool
    ) -> str:
        """Saves to the server's own folder and, if asked, to the shared one.

        To be cancelled stops only the waiting.

        Args:
            state: As ``StageCompute.state`` gives it; not to be changed meanwhile.

        Returns:
            The digest of the stage's manifest.

        Raises:
            CheckpointError: It was not saved to the shared folder if that was asked, to
                its own if not; or another save is not yet over.
        """
        if self._saving is not None and not self._saving.done():
            raise CheckpointError(
                f"busy: step {position.step} is not saved, since the save before it is "
                "not over. Save less often, or to a faster disk"
            )
        folders = [self._own, self._shared if to_shared else None]
        used = [folder for folder in folders if folder is not None]
        assert used, "nowhere to save to"
        self._saving = self._worker.submit(self._save, _plain(position), state, used)
        return await asyncio.wrap_future(self._saving)

    async def complete(
        self,
        step: int,
        generation: int,
        digests: Mapping[int, str],
        summary: Mapping[str, Any],
    ) -> None:
        """Marks a step complete wherever a part of it is held.

        Raises:
            CheckpointError: See ``CheckpointFolder.complete``; both folders have been
                tried.
        """
        await self._run(self._complete, step, generation, digests, summary)

    async def load(self, step: int) -> Loaded:
        """From its own folder, else from the shared one.

        Returns:
            ``(generation, step, lineage, last_commit, state)``; ``last_commit`` is
            (step, gradient norm) or None.

        Raises:
            CheckpointError: It is in neither, or damaged.
        """
        return await self._run(self._load, step)

    def close(self) -> None:
        """Waits for a save that has begun; nothing may be asked for after."""
        self._worker.shutdown(cancel_futures=True)

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.wrap_future(self._worker.submit(function, *arguments))

    def _refresh(self) -> None:
        found: set[int] = set()
        if self._own is not None:
            found.update(self._own.steps(self._layered.names))
        if self._shared is not None:
            found.update(self._shared.steps())
        self._steps = sorted(found)

    def _complete(
        self,
        step: int,
        generation: int,
        digests: Mapping[int, str],
        summary: Mapping[str, Any],
    ) -> None:
        marker = {"config": self._config, "summary": summary}
        reasons = []
        for folder in self._folders:
            try:
                folder.complete(step, generation, digests, **marker)
            except CheckpointError as reason:
                reasons.append(str(reason))
        self._refresh()
        if reasons:
            raise CheckpointError("; ".join(reasons))

    def _save(
        self,
        saved: Saved,
        state: Sequence[np.ndarray],
        folders: Sequence[CheckpointFolder],
    ) -> str:
        layers, shared = self._layered.split(state)
        fingerprint = folders[0].model_fingerprint
        manifest = describe(
            self._stage, self._num_stages, fingerprint, saved, layers, shared
        )
        *by_the_way, wanted = folders
        for folder in by_the_way:
            try:
                folder.write(manifest, layers)
            except CheckpointError as reason:
                logger.warning("%s", reason)
        wanted.write(manifest, layers)
        return manifest.digest

    def _load(self, step: int) -> Loaded:
        reasons = []
        for folder in self._folders:
            try:
                saved, *arrays = folder.load(step, self._layered.names)
            except CheckpointError as reason:
                logger.warning("%s", reason)
                reasons.append(str(reason))
            else:
                state = self._layered.join(*arrays)
                return (
                    saved.generation,
                    saved.step,
                    saved.lineage,
                    saved.last_commit,
                    state,
                )
        raise CheckpointError("; ".join(reasons))


def _plain(position: Position) -> Saved:
    commit = position.last_commit
    return Saved(
        position.step,
        position.generation,
        position.lineage,
        None if commit is None else (commit.step, commit.gradient_norm),
    )
