"""A stage server's part in closing steps: collect, drop, prepare, commit, and more."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.ledger import ledger_digest
from swarm_jax.core.reports import (
    DRAINING,
    JOINING,
    OFFLINE,
    ONLINE,
    CommitRecord,
    Report,
)
from swarm_jax.core.stage_state import StageState
from swarm_jax.errors import AllReduceVoid
from swarm_jax.net.protocols import Message
from swarm_jax.roles.changes import Changes
from swarm_jax.roles.compute import Compute
from swarm_jax.roles.joining import Joining
from swarm_jax.roles.messages import (
    Collect,
    Commit,
    DropSum,
    HandOver,
    Prepare,
    RestartRun,
    ResyncState,
    Status,
    refusal,
    report_to_header,
)
from swarm_jax.roles.peers import SwarmView
from swarm_jax.roles.reducing import Reducing
from swarm_jax.roles.relaying import Relaying
from swarm_jax.roles.stage_saving import StageSaving

logger = logging.getLogger(__name__)


class StageControl:
    """Answers the leader's control requests, and stage peers that leave.

    Args:
        view: What this peer knows of the others.
        on_commit: Called after each step with the number of microbatches that this peer
            had counted in it.
        on_count: Called with the step and how many of its microbatches are counted.
        on_state: Called when this peer's state has changed, to tell the swarm.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        state: StageState,
        peer_id: str,
        *,
        reducing: Reducing,
        compute: Compute,
        relaying: Relaying,
        changes: Changes,
        joining: Joining,
        saving: StageSaving,
        view: SwarmView,
        on_commit: Callable[[int], None],
        on_count: Callable[[int, int], None],
        on_state: Callable[[], None],
    ):
        self._is_last = state.stage == config.swarm.num_stages - 1
        self._state = state
        self._peer_id = peer_id
        self._reducing = reducing
        self._compute = compute
        self._relaying = relaying
        self._changes = changes
        self._joining = joining
        self._saving = saving
        self._view = view
        self._on_commit = on_commit
        self._on_count = on_count
        self._on_state = on_state
        # Nothing is counted early without delayed updates.
        self._hold = changes.hold if state.staleness else changes.run

    def locate(self) -> Message:
        """Tells a guest which parameters are served; promises nothing."""
        if self._state.state != ONLINE:
            return refusal(Status.NOT_ONLINE)
        generation, step, *_ = self._state.position
        return Message({"status": Status.OK, "generation": generation, "step": step})

    async def collect(self, request: Collect) -> Message:
        """Promises itself to the round; older work is cancelled and never counted."""
        if not self._state.promise_to(request.round):
            return self._old_round()
        self._joining.known.set()
        self._relaying.cancel_older_than(request.round)
        await self._relaying.settled()
        state = self._state
        report = Report(
            peer=self._peer_id,
            stage=state.stage,
            state=state.state,
            generation=state.generation,
            step=state.step,
            lineage=state.lineage,
            counted=state.ledger.counted,
            early=state.early.counted,
            prepared_step=state.prepared[0] if state.prepared else None,
            can_replay=state.can_replay,
            last_commit=state.last_commit,
            losses=state.ledger.losses if self._is_last else None,
            saved=self._saving.steps,
            folder=self._saving.folder,
            newest_heard=self._view.newest,
        )
        return Message(report_to_header(report))

    async def drop(self, request: DropSum) -> Message:
        return await self._changes.run(self._drop(request))

    async def _drop(self, request: DropSum) -> Message:
        if bad := self._refuse(request):
            return bad
        await self._compute.clear()
        self._state.clear()
        return Message({"status": Status.OK})

    async def prepare(self, request: Prepare) -> Message:
        """Reduces the gradient, divided by the step's loss tokens, into a buffer.

        With the others of its group, if there are any (``_reduce_alone``).

        Each of n peers contributes ``sum * n / T`` to a mean over n, so that any split
        of the microbatches over peers, idle ones and joiners included, gives the same
        gradient. A joiner must be taken for one: had it just moved here, others would
        miss what it had counted in the stage that it left.
        """
        if self._state.state == JOINING:
            if not self._state.promise_to(request.round):
                return self._old_round()
            if request.group.get(self._peer_id) != ledger_digest(()):
                return refusal(Status.DIFFERENT_LEDGER)
            contribution = self._joining.nothing()
        elif self._is_alone(request):
            return await self._hold(self._reduce_alone(request))
        else:
            contribution = await self._hold(self._contribution(request))
            if isinstance(contribution, Message):
                return contribution
        try:
            mean = await self._reducing.mean(request, contribution)
        except AllReduceVoid as void:
            logger.warning("step %d: %s", request.step, void)
            return refusal(Status.VOID, lacked=list(void.missing))
        if self._state.state == JOINING:
            self._joining.keep_reduced(request.generation, request.step, mean)
            return Message({"status": Status.OK, "squared_norm": None})
        return await self._hold(self._load(request, mean))

    def _is_alone(self, request: Prepare) -> bool:
        """Whether no other peer has a part in the gradient, nor in a part of it."""
        return len(request.group) == 1 and self._compute.tied_leaf is None

    async def _reduce_alone(self, request: Prepare) -> Message:
        """The sum stays where it is: at 2.4 GB, to fetch and load it takes seconds.

        Nor is it hashed. Nobody else can have the parameters that it leads to, but from
        this peer: the round's name tells them from all others.
        """
        if bad := self._refuse_sum(request):
            return bad
        self._state.prepared = None
        squared_norm = await self._compute.reduce_alone(1 / request.loss_tokens)
        return self._prepared(squared_norm, f"{self._peer_id} in {request.round}")

    async def _contribution(self, request: Prepare) -> Message | list[np.ndarray]:
        """This peer's part of the mean."""
        if bad := self._refuse_sum(request):
            return bad
        return await self._compute.gradient_sum(
            len(request.group) / request.loss_tokens,
            len(request.tied) / request.loss_tokens,
        )

    async def _load(self, request: Prepare, mean: list[np.ndarray]) -> Message:
        if bad := self._refuse(request):
            return bad
        self._state.prepared = None
        reduced = await self._compute.load_reduced(mean)
        return self._prepared(reduced.squared_norm, reduced.digest)

    def _prepared(self, squared_norm: float, gradient: str) -> Message:
        if not np.isfinite(squared_norm):
            return refusal(Status.NONFINITE)
        self._state.prepare(gradient)
        return Message({"status": Status.OK, "squared_norm": squared_norm})

    async def commit(self, request: Commit) -> Message:
        if self._state.state == JOINING:
            if not self._state.promise_to(request.round):
                return self._old_round()
            record = CommitRecord(request.step, request.gradient_norm)
            self._joining.keep_commit(request.generation, record)
            return Message({"status": Status.OK})
        return await self._changes.run(self._commit(request))

    async def _commit(self, request: Commit) -> Message:
        state = self._state
        if state.generation == request.generation and state.step > request.step:
            return Message({"status": Status.OK})
        if bad := self._refuse(request):
            return bad
        counted = len(state.ledger)
        if request.gradient_norm is None:
            await self._compute.skip()
        elif state.can_commit:
            await self._compute.apply(request.gradient_norm)
        else:
            return refusal(Status.NOT_PREPARED)
        state.commit(request.gradient_norm)
        self._on_commit(counted)
        return Message({"status": Status.OK})

    async def resync(self, request: ResyncState) -> Message:
        """Starts to fetch the stage's state; answers at once."""
        if not self._state.promise_to(request.round):
            return self._old_round()
        if self._state.state == DRAINING:
            self.enter(OFFLINE)  # what it would hand over is stale
        elif self._state.state != OFFLINE:
            self._joining.start()
        return Message({"status": Status.OK})

    async def restart(self, request: RestartRun) -> Message:
        return await self._changes.run(self._restart(request))

    async def _restart(self, request: RestartRun) -> Message:
        if not self._state.promise_to(request.round):
            return self._old_round()
        if self._state.state == OFFLINE:
            return refusal(Status.NOT_ONLINE)
        if request.generation > self._state.generation:
            self._joining.cancel()
            if request.step == 0:
                await self._compute.reset()
                self._state.restart(request.generation)
            elif not await self._saving.go_back(request.step, request.generation):
                return refusal(Status.UNKNOWN_STATE)
            if self._state.state == JOINING:
                self.enter(ONLINE)
            self._on_state()
        return Message({"status": Status.OK})

    async def take_over(
        self, request: HandOver, gradients: Sequence[np.ndarray]
    ) -> Message:
        """Adds the sum of a stage peer that leaves, and its ledger, to this one's."""
        return await self._changes.run(self._take_over(request, gradients))

    async def _take_over(
        self, request: HandOver, gradients: Sequence[np.ndarray]
    ) -> Message:
        state = self._state
        if state.state != ONLINE:
            return refusal(Status.NOT_ONLINE)
        position = request.generation, request.step, request.lineage
        if position != state.position[:3]:
            return refusal(Status.WRONG_STEP, step=state.step)
        if not request.losses:
            return Message({"status": Status.OK})
        if request.round != state.promise:
            return self._old_round()
        if request.losses.keys() & state.ledger.counted:
            return refusal(Status.DIFFERENT_LEDGER)
        if not await self._compute.add_to_sum(gradients):
            return refusal(Status.NONFINITE)
        state.ledger.merge(request.losses)
        self._on_count(state.step, len(state.ledger))
        return Message({"status": Status.OK})

    def enter(self, state: str) -> None:
        self._state.state = state
        self._on_state()

    def _refuse(self, request: DropSum | Prepare | Commit) -> Message | None:
        state = self._state
        if not state.promise_to(request.round):
            return self._old_round()
        if state.state in (JOINING, OFFLINE):
            return refusal(Status.NOT_ONLINE)
        if (request.generation, request.step) != (state.generation, state.step):
            return refusal(Status.WRONG_STEP, step=state.step)
        return None

    def _refuse_sum(self, request: Prepare) -> Message | None:
        """Unless the sum here is what the leader believes."""
        if bad := self._refuse(request):
            return bad
        if request.group.get(self._peer_id) != self._state.ledger_digest():
            return refusal(Status.DIFFERENT_LEDGER)
        return None

    def _old_round(self) -> Message:
        return refusal(Status.OLD_ROUND, promise=list(self._state.promise))
