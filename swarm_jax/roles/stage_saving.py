"""A stage server's part in checkpoints: saves a state, and goes back to a saved one."""

import logging

from swarm_jax.core.reports import DRAINING, ONLINE, CommitRecord
from swarm_jax.core.stage_state import Position, StageState
from swarm_jax.errors import CheckpointError
from swarm_jax.net.protocols import Message
from swarm_jax.roles.changes import Changes
from swarm_jax.roles.checkpoints import Arrays, Checkpoints, SavedPosition
from swarm_jax.roles.compute import Compute
from swarm_jax.roles.messages import CompleteSave, SaveState, Status, refusal

logger = logging.getLogger(__name__)


class StageSaving:
    """Answers the leader's requests to save; training goes on meanwhile."""

    def __init__(
        self,
        state: StageState,
        compute: Compute,
        changes: Changes,
        checkpoints: Checkpoints,
    ):
        self._state = state
        self._compute = compute
        self._changes = changes
        self._checkpoints = checkpoints

    @property
    def steps(self) -> frozenset[int]:
        """Those that this stage can be restored at."""
        return frozenset(self._checkpoints.steps())

    @property
    def folder(self) -> str:
        return self._checkpoints.folder

    @property
    def newest(self) -> int:
        """Step of the newest state that was saved; 0 if there is none."""
        return max(self._checkpoints.steps(), default=0)

    def close(self) -> None:
        self._checkpoints.close()

    async def save(self, request: SaveState) -> Message:
        """Only the copy on the device has to wait for its turn, not the writing."""
        if self._state.follows_newer(request.round):
            return refusal(Status.OLD_ROUND, promise=list(self._state.promise))
        if self._state.state not in (ONLINE, DRAINING):
            return refusal(Status.NOT_ONLINE)
        position, arrays = await self._changes.read(self._read())
        if position[:2] != (request.generation, request.step):
            return refusal(Status.WRONG_STEP, step=position.step)
        try:
            digest = await self._checkpoints.save(_plain(position), arrays)
        except CheckpointError as error:
            logger.warning("step %d is not saved: %s", request.step, error)
            return refusal(Status.NOT_SAVED)
        return Message({"status": Status.OK, "digest": digest})

    async def _read(self) -> tuple[Position, Arrays]:
        return self._state.position, await self._compute.state()

    async def complete(self, request: CompleteSave) -> Message:
        try:
            await self._checkpoints.complete(
                request.step,
                request.generation,
                dict(enumerate(request.digests)),
                request.summary,
            )
        except CheckpointError as error:
            logger.warning("step %d is not complete: %s", request.step, error)
            return refusal(Status.NOT_SAVED)
        return Message({"status": Status.OK, "digest": ""})

    async def go_back(self, step: int, generation: int | None = None) -> bool:
        """Takes the state that was saved at ``step``; False if it cannot be read.

        Args:
            generation: Of a run that starts again there; None for the saved one.
        """
        try:
            saved, arrays = await self._checkpoints.load(step)
        except CheckpointError as error:
            logger.warning("step %d cannot be restored: %s", step, error)
            return False
        await self._compute.load_state(arrays)
        commit = saved.last_commit and CommitRecord(*saved.last_commit)
        if generation is None:
            generation = saved.generation
        self._state.adopt(Position(generation, saved.step, saved.lineage, commit))
        logger.info("restored the state of step %d", step)
        return True

    async def resume(self, others_step: int) -> None:
        """Takes the newest saved state, unless others are further."""
        while self.newest and self.newest >= others_step:
            if await self._changes.run(self.go_back(self.newest)):
                return


def _plain(position: Position) -> SavedPosition:
    commit = position.last_commit
    return SavedPosition(
        position.generation,
        position.step,
        position.lineage,
        commit and (commit.step, commit.gradient_norm),
    )
