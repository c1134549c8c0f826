"""Becoming a current peer of a stage while the swarm trains on.

From the start of its download a joiner is a member of its stage's all-reduce: it
contributes nothing, keeps the reduced gradients and the commits, and applies them when
it has the state. So it catches up even when the download takes many steps. Meanwhile
its device may still be compiling: nothing is asked of it before the state has come.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

import numpy as np

from swarm_jax.core.reports import JOINING, ONLINE, CommitRecord
from swarm_jax.core.stage_state import StageState
from swarm_jax.net.protocols import PeerCalls
from swarm_jax.roles.arrival import DOWNLOAD, Arrival
from swarm_jax.roles.changes import Changes
from swarm_jax.roles.compute import Compute
from swarm_jax.roles.download import Download, NoDonor
from swarm_jax.roles.peers import SwarmView
from swarm_jax.roles.snapshots import Manifest, arrays_of, state_bytes

logger = logging.getLogger(__name__)

RETRY_S = 0.2
ALONE_TRIES = 3
"""Reads of the directory without any donor after which there is none."""


class Joining:
    """Fetches the stage's state and catches up with what happened meanwhile.

    Args:
        refresh_s: How long it takes until a record has been read by everybody.
        max_kept_bytes: Host memory for the gradients of the steps meanwhile.
        arrival: Learns how long the download takes.
        on_state: Called when this peer's state has changed.

    Attributes:
        known: Set once the leader has asked this peer where it is.
    """

    def __init__(
        self,
        state: StageState,
        calls: PeerCalls,
        compute: Compute,
        view: SwarmView,
        changes: Changes,
        *,
        swarm: str,
        timeout_s: float,
        refresh_s: float,
        max_kept_bytes: int,
        arrival: Arrival,
        on_state: Callable[[], None],
    ):
        self._state = state
        self._compute = compute
        self._view = view
        self._changes = changes
        self._peer_id = calls.peer_id
        self._refresh_s = refresh_s
        self._max_kept_bytes = max_kept_bytes
        self._arrival = arrival
        self._on_state = on_state
        self._download = Download(
            calls, swarm, state.stage, state_bytes(compute.state_specs), timeout_s
        )
        self._reduced: dict[tuple[int, int], list[np.ndarray]] = {}
        self._commits: dict[tuple[int, int], CommitRecord] = {}
        self._task: asyncio.Task | None = None
        self.known = asyncio.Event()

    def start(self) -> None:
        """Does nothing if it is under way already."""
        if self._task is None:
            self._enter(JOINING)
            self._task = asyncio.ensure_future(self._join())
            self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def nothing(self) -> list[np.ndarray]:
        """What a joiner contributes to an all-reduce."""
        return [np.zeros(shape, name) for name, shape in self._compute.sum_specs]

    def keep_reduced(self, generation: int, step: int, mean: list[np.ndarray]) -> None:
        """Notes the gradient of a step, for later."""
        self._reduced[generation, step] = mean
        kept = sum(array.nbytes for array in mean) * len(self._reduced)
        while kept > self._max_kept_bytes and len(self._reduced) > 1:
            oldest = min(self._reduced)
            kept -= sum(array.nbytes for array in self._reduced.pop(oldest))
            logger.warning(
                "the gradient of step %d is dropped before it could be applied: this "
                "peer needs longer to join than its memory lasts. Raise "
                "tuning.join_buffer_bytes",
                oldest[1],
            )

    def keep_commit(self, generation: int, record: CommitRecord) -> None:
        self._commits[generation, record.step] = record

    async def _join(self) -> None:
        """Downloads and catches up, until no step is missing in between.

        With nobody to fetch from, this peer goes back to what it has.
        """
        await self._changes.run(self._free())
        await self._until_known()
        alone = 0
        while True:
            peers = self._download.honest(self._view.donors(self._state.stage))
            donors = [peer for peer in peers if peer != self._peer_id]
            alone = 0 if donors else alone + 1
            if alone > ALONE_TRIES:
                logger.warning("nobody else is there to fetch the stage's state from")
                self._enter(ONLINE)
                return
            try:
                manifest, data = await self._arrival.timed(
                    DOWNLOAD, self._download.fetch(donors)
                )
            except NoDonor as error:
                logger.info("%s", error)
                await asyncio.sleep(RETRY_S if donors else self._refresh_s)
                await self._view.refresh()
                continue
            # Not as part of a change: steps of the swarm would wait for a compiler.
            await self._compute.ready()
            if await self._changes.run(self._catch_up(manifest, data)):
                return
            logger.info("step %d is missing: fetching again", self._state.step)

    async def _until_known(self) -> None:
        """Waits until the leader must have heard of this peer.

        It would not take part in the steps until then: a state of before would be stale
        when it has come. A leader that asks later has read the directory by then.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * self._refresh_s):
                await self.known.wait()

    async def _free(self) -> None:
        """A stale sum is of no use, and costs memory."""
        self._state.clear()
        await self._compute.clear()

    async def _catch_up(self, manifest: Manifest, data: memoryview) -> bool:
        """Takes the state and applies what came after it; False if a step is missing.

        There is no pause between the last look at what was kept and being ONLINE, or a
        commit could fall between the two. Whoever is no longer JOINING was restarted or
        told to leave meanwhile.
        """
        state = self._state
        if state.state != JOINING:
            return True
        await self._compute.load_state(arrays_of(data, self._compute.state_specs))
        state.adopt(manifest.position)
        logger.info("took the state of step %d", state.step)
        while await self._apply_next():
            pass
        if any(name >= (state.generation, state.step) for name in self._commits):
            return False
        if state.state == JOINING:
            self._enter(ONLINE)
        return True

    async def _apply_next(self) -> bool:
        """One step further; False when there is no more, or no commit of it yet."""
        state = self._state
        name = state.generation, state.step
        record = self._commits.get(name)
        if record and record.gradient_norm is None:
            await self._compute.skip()
            state.commit(None)
            return True
        if not state.can_commit:
            if name not in self._reduced:
                return False
            reduced = await self._compute.load_reduced(self._reduced[name])
            state.prepare(reduced.digest)
            return True
        if record is None:
            return False
        await self._compute.apply(record.gradient_norm)
        state.commit(record.gradient_norm)
        return True

    def _ended(self, task: asyncio.Task) -> None:
        self._task = None
        self._reduced.clear()
        self._commits.clear()
        self._download.clear()
        self._changes.note_failure(task)

    def _enter(self, state: str) -> None:
        self._state.state = state
        self._on_state()
