"""A stage server's part in closing steps: collect, drop, prepare, commit, resync."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.ids import Round
from swarm_jax.core.reports import JOINING, ONLINE, CommitRecord, Report
from swarm_jax.core.stage_state import StageState
from swarm_jax.errors import AllReduceVoid, PeerError
from swarm_jax.net.protocols import AllReduce, Message, PeerCalls
from swarm_jax.roles.compute import Compute
from swarm_jax.roles.messages import (
    Collect,
    Commit,
    DropSum,
    FetchState,
    MalformedHeader,
    Prepare,
    ResyncState,
    Status,
    commit_from_header,
    read,
    refusal,
    report_to_header,
    to_header,
)
from swarm_jax.roles.peers import SwarmView
from swarm_jax.roles.relaying import Relaying

T = TypeVar("T")

logger = logging.getLogger(__name__)


class StageControl:
    """Answers the leader's control requests (design, section 5).

    ``broken`` gets the exception when the device failed in the middle of a change.

    Args:
        on_commit: Called after each step with the number of microbatches that this peer
            had counted in it.
        on_state: Called when this peer's state has changed, to tell the swarm.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        state: StageState,
        calls: PeerCalls,
        allreduce: AllReduce,
        compute: Compute,
        view: SwarmView,
        relaying: Relaying,
        *,
        on_commit: Callable[[int], None],
        on_state: Callable[[], None],
    ):
        self._tuning = config.tuning
        self._swarm = config.swarm_fingerprint()
        self._is_last = state.stage == config.swarm.num_stages - 1
        self._state = state
        self._calls = calls
        self._allreduce = allreduce
        self._compute = compute
        self._view = view
        self._relaying = relaying
        self._on_commit = on_commit
        self._on_state = on_state
        self._changing = asyncio.Lock()
        self._fetching: asyncio.Task | None = None
        self.broken: asyncio.Future = asyncio.get_running_loop().create_future()

    async def collect(self, request: Collect) -> Message:
        """Promises itself to the round; older work is cancelled and never counted."""
        if not self._state.promise_to(request.round):
            return self._old_round()
        self._relaying.cancel_older_than(request.round)
        await self._relaying.settled()
        state = self._state
        report = Report(
            peer=self._calls.peer_id,
            stage=state.stage,
            state=state.state,
            step=state.step,
            lineage=state.lineage,
            counted=state.ledger.counted,
            prepared_step=state.prepared[0] if state.prepared else None,
            last_commit=state.last_commit,
            losses=state.ledger.losses if self._is_last else None,
        )
        return Message(report_to_header(report))

    async def drop(self, request: DropSum) -> Message:
        return await self._change(self._drop(request))

    async def _drop(self, request: DropSum) -> Message:
        if bad := self._refuse(request.round, request.step):
            return bad
        await self._compute.clear()
        self._state.clear()
        return Message({"status": Status.OK})

    async def prepare(self, request: Prepare) -> Message:
        """All-reduces the gradient, divided by the step's loss tokens, into a buffer.

        Each of n peers contributes ``sum * n / T`` to a mean over n, so that any split
        of the microbatches over peers, idle ones included, gives the same gradient.
        """
        contribution = await self._change(self._contribution(request))
        if isinstance(contribution, Message):
            return contribution
        stage = self._state.stage
        group_id = "/".join(map(str, (stage, request.step, *request.round)))
        try:
            mean = await self._allreduce.average(
                f"{self._view.prefix}/{group_id}",
                sorted(request.group),
                contribution,
                timeout_s=self._tuning.allreduce_timeout_s,
            )
        except AllReduceVoid as void:
            logger.warning("step %d: %s", request.step, void)
            return refusal(Status.VOID, lacked=list(void.missing))
        return await self._change(self._load(request, mean))

    async def _contribution(self, request: Prepare) -> Message | list[np.ndarray]:
        """This peer's part of the mean, if its sum is what the leader believes."""
        if bad := self._refuse(request.round, request.step):
            return bad
        if request.group.get(self._calls.peer_id) != self._state.ledger_digest():
            return refusal(Status.DIFFERENT_LEDGER)
        scale = len(request.group) / request.loss_tokens
        return await self._compute.gradient_sum(scale)

    async def _load(self, request: Prepare, mean: list[np.ndarray]) -> Message:
        if bad := self._refuse(request.round, request.step):
            return bad
        self._state.prepared = None
        squared_norm = await self._compute.load_reduced(mean)
        if not np.isfinite(squared_norm):
            return refusal(Status.NONFINITE)
        self._state.prepare(_bytes_of(array) for array in mean)
        return Message({"status": Status.OK, "squared_norm": squared_norm})

    async def commit(self, request: Commit) -> Message:
        return await self._change(self._commit(request))

    async def _commit(self, request: Commit) -> Message:
        if self._state.step > request.step:
            return Message({"status": Status.OK})
        if bad := self._refuse(request.round, request.step):
            return bad
        counted = len(self._state.ledger)
        if request.gradient_norm is None:
            await self._compute.clear()
        elif self._state.can_commit:
            await self._compute.apply(request.gradient_norm)
        else:
            return refusal(Status.NOT_PREPARED)
        self._state.commit(request.gradient_norm)
        self._on_commit(counted)
        return Message({"status": Status.OK})

    async def resync(self, request: ResyncState) -> Message:
        """Starts to fetch the stage's state; answers at once."""
        if not self._state.promise_to(request.round):
            return self._old_round()
        if self._fetching is None:
            self._enter(JOINING)
            self._fetching = asyncio.ensure_future(self._fetch_until_current())
            self._fetching.add_done_callback(self._fetched)
        return Message({"status": Status.OK})

    async def give_state(self, request: FetchState) -> Message:
        async with self._changing:
            state = self._state
            if state.state == JOINING or request.stage != state.stage:
                return refusal(Status.NOT_ONLINE)
            arrays = await self._compute.state()
            commit = state.last_commit
            header = {
                "status": Status.OK,
                "step": state.step,
                "lineage": state.lineage,
                "last_commit": commit and [commit.step, commit.gradient_norm],
            }
        return Message(header, arrays)

    def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()

    async def _fetch_until_current(self) -> None:
        """Asks stage peers, those of the newest step first, until one has answered."""
        while True:
            records = self._view.stages.get(self._state.stage, {})
            donors = [peer for peer in records if peer != self._calls.peer_id]
            for peer in sorted(donors, key=lambda p: (-records[p].step, p)):
                if await self._fetch_from(peer):
                    return
            await asyncio.sleep(self._tuning.directory_refresh_s)

    async def _fetch_from(self, peer: str) -> bool:
        request = FetchState(stage=self._state.stage)
        try:
            reply = await self._calls.call(
                peer,
                Message(to_header(request, self._swarm)),
                timeout_s=self._tuning.relay_timeout_s,
            )
            if reply.header.get("status") != Status.OK:
                return False
            step = read(reply.header, "step", "int")
            lineage = read(reply.header, "lineage", "str")
            last_commit = commit_from_header(reply.header)
            if step < self._state.step:
                return False
            await self._change(self._adopt(reply, step, lineage, last_commit))
        except (PeerError, MalformedHeader, ValueError) as error:
            logger.warning("could not take the state of %s: %s", peer[-6:], error)
            return False
        logger.info("took the state of step %d from %s", step, peer[-6:])
        return True

    async def _adopt(
        self,
        reply: Message,
        step: int,
        lineage: str,
        last_commit: CommitRecord | None,
    ) -> None:
        await self._compute.load_state(reply.arrays)
        self._state.adopt(step, lineage, last_commit)
        self._on_state()

    async def _change(self, change: Coroutine[Any, Any, T]) -> T:
        """Reads or changes device and ledger together: one at a time, each to its end.

        The caller may lose patience in the middle (a first update compiles for long);
        if that cancelled the change, the device would have gone on without the ledger.
        And no gradient may enter the sum between the two.
        """

        async def alone() -> T:
            async with self._changing:
                self._state.changing = True
                try:
                    await self._relaying.settled()
                    return await change
                finally:
                    self._state.changing = False

        changing = asyncio.ensure_future(alone())
        changing.add_done_callback(self._note_failure)
        return await asyncio.shield(changing)

    def _note_failure(self, change: asyncio.Task) -> None:
        """A device that failed half way can no longer be trusted: the server ends."""
        error = None if change.cancelled() else change.exception()
        if error and not isinstance(error, ValueError) and not self.broken.done():
            self.broken.set_exception(error)

    def _fetched(self, task: asyncio.Task) -> None:
        self._fetching = None
        self._note_failure(task)
        if not task.cancelled() and task.exception() is None:
            self._enter(ONLINE)

    def _enter(self, state: str) -> None:
        self._state.state = state
        self._on_state()

    def _refuse(self, round_: Round, step: int) -> Message | None:
        if not self._state.promise_to(round_):
            return self._old_round()
        if self._state.state == JOINING:
            return refusal(Status.NOT_ONLINE)
        if step != self._state.step:
            return refusal(Status.WRONG_STEP, step=self._state.step)
        return None

    def _old_round(self) -> Message:
        return refusal(Status.OLD_ROUND, promise=list(self._state.promise))


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.asarray(array, order="C").reshape(-1).view(np.uint8).data
