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


class Position(Protocol):
    """Which parameters a server has.

    Attributes:
        last_commit: Step and gradient norm (None: it was skipped), if there is one.
    """

    generation: int
    step: int
    lineage: str
    last_commit: tuple[int, float | None] | None


class SavedStage:
    """``roles.checkpoints.Checkpoints``; its work is done by a thread of its own.

    Args:
        layered: Of the server's stage.
        config: Of the experiment; it goes into the checkpoints.

    Attributes:
        folder: Names the folder, the same for all who share it.

    Raises:
        CheckpointError: The folder has checkpoints of another experiment, or cannot be
            written to.
    """

    def __init__(
        self,
        layered: LayeredState,
        checkpoints: CheckpointFolder,
        *,
        stage: int,
        num_stages: int,
        config: Mapping[str, Any],
    ):
        self._layered = layered
        self._checkpoints = checkpoints
        self._stage = stage
        self._num_stages = num_stages
        self._config = config
        self._worker = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future | None = None
        self._damaged: set[int] = set()
        self._look()

    def steps(self) -> list[int]:
        """Steps that this stage can be restored at, as of the last ``complete``."""
        return self._steps

    async def save(self, position: Position, state: Sequence[np.ndarray]) -> str:
        """To be cancelled stops only the waiting.

        Args:
            state: As ``StageCompute.state`` gives it; not to be changed meanwhile.

        Returns:
            The digest of the stage's manifest.

        Raises:
            CheckpointError: It was not saved, or another save is not yet over.
        """
        if self._saving is not None and not self._saving.done():
            raise CheckpointError(
                f"busy: step {position.step} is not saved, since the save before it is "
                "not over. Save less often, or to a faster disk"
            )
        saved = Saved(
            position.step, position.generation, position.lineage, position.last_commit
        )
        self._saving = self._worker.submit(self._save, saved, state)
        return await asyncio.wrap_future(self._saving)

    async def complete(
        self,
        step: int,
        generation: int,
        digests: Mapping[int, str],
        summary: Mapping[str, Any],
    ) -> None:
        """Marks a step complete where a part of it is held.

        Raises:
            CheckpointError: See ``CheckpointFolder.complete``.
        """

        def mark() -> None:
            try:
                self._checkpoints.complete(
                    step, generation, digests, config=self._config, summary=summary
                )
                self._damaged.discard(step)
            finally:
                self._look()

        await self._run(mark)

    async def load(self, step: int) -> tuple[Saved, list[np.ndarray]]:
        """What was saved; a damaged step is none of ``steps`` any more.

        Raises:
            CheckpointError: It is not there, or damaged.
        """
        return await self._run(self._load, step)

    def close(self) -> None:
        """What is being saved goes on; nothing may be asked for after."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.wrap_future(self._worker.submit(function, *arguments))

    def _look(self) -> None:
        self.folder = self._checkpoints.name()
        found = self._checkpoints.steps(self._layered.names)
        self._steps = [step for step in found if step not in self._damaged]

    def _save(self, saved: Saved, state: Sequence[np.ndarray]) -> str:
        layers, shared = self._layered.split(state)
        fingerprint = self._checkpoints.model_fingerprint
        manifest = describe(
            self._stage, self._num_stages, fingerprint, saved, layers, shared
        )
        self._checkpoints.write(manifest, layers)
        return manifest.digest

    def _load(self, step: int) -> tuple[Saved, list[np.ndarray]]:
        try:
            saved, layers, shared = self._checkpoints.load(step, self._layered.names)
            return saved, self._layered.join(layers, shared)
        except CheckpointError:
            self._damaged.add(step)
            self._look()
            raise
