"""Serves one stage of the model to the swarm."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.reports import JOINING, OFFLINE, ONLINE
from swarm_jax.core.stage_state import Position, StageState
from swarm_jax.errors import BadMessage
from swarm_jax.metrics import MetricsWriter
from swarm_jax.net.protocols import (
    AllReduce,
    ArraySpec,
    Directory,
    Message,
    PeerCalls,
)
from swarm_jax.roles.arrival import COMPILE, Arrival
from swarm_jax.roles.changes import Changes
from swarm_jax.roles.checkpoints import Checkpoints, NoCheckpoints
from swarm_jax.roles.compute import Compute
from swarm_jax.roles.joining import Joining
from swarm_jax.roles.leaving import Leaving
from swarm_jax.roles.messages import (
    Collect,
    Commit,
    CompleteSave,
    DropSum,
    FetchChunk,
    FetchManifest,
    FetchTied,
    HandOver,
    Locate,
    MalformedHeader,
    MoveTo,
    Prepare,
    Relay,
    RestartRun,
    ResyncState,
    SaveState,
    Status,
    Watch,
    from_header,
    refusal,
)
from swarm_jax.roles.peers import PeerRecord, SwarmView
from swarm_jax.roles.reducing import Reducing
from swarm_jax.roles.relay import NextStage
from swarm_jax.roles.relaying import Relaying
from swarm_jax.roles.snapshots import Snapshots
from swarm_jax.roles.stage_control import StageControl
from swarm_jax.roles.stage_saving import StageSaving
from swarm_jax.roles.watches import answer_watch

logger = logging.getLogger(__name__)

IDLE_S = 15.0


class StageServer:
    """One peer of one stage: ``Service`` for its neighbours and the leader.

    Args:
        config: The experiment.
        name: For people: shown in metrics and progress.
        stage: Index of the stage, from 0.
        compute: The stage's device; it need not be ready.
        metrics: Gets a record per step.
        checkpoints: Where its state is saved, and restored from when it starts.
        authorised: The allow-list: peers it refuses are dropped.
        on_count: Called with the step and how many of its microbatches are counted.
        on_ready: Called whenever this peer begins to take microbatches.
        on_finished: Called once when this peer has the state after the last step.

    Attributes:
        told_to_move: Set to the stage that this peer is to serve instead.
        has_committed: Whether it has taken part in a step.
        known_step: Others are at this step at least, as whoever runs it knows.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        name: str,
        stage: int,
        calls: PeerCalls,
        directory: Directory,
        allreduce: AllReduce,
        compute: Compute,
        metrics: MetricsWriter,
        checkpoints: Checkpoints | None = None,
        authorised: Callable[[str], bool] = lambda peer: True,
        on_count: Callable[[int, int], None] = lambda step, counted: None,
        on_ready: Callable[[], None] = lambda: None,
        on_finished: Callable[[], None] = lambda: None,
    ):
        self._config = config
        self._name = name
        self._calls = calls
        self._compute = compute
        self._metrics = metrics
        self._authorised = authorised
        self._on_count = on_count
        self._on_ready = on_ready
        self._on_finished = on_finished
        self._swarm = config.swarm_fingerprint()
        shape = (config.swarm.microbatch_size, config.model.sequence_length)
        self._relay_specs = [("int32", shape), *compute.input_specs]
        self._news = asyncio.Event()
        self._finished = False
        self._heard_s = 0.0
        self.arrival = Arrival()
        self.has_committed = False
        self.told_to_move = _unset()
        self.known_step = 0
        self.state = StageState(stage, int(config.swarm.delayed_updates))
        # Its stage peers, and those that it sends to.
        nearby = range(stage, min(stage + 2, config.swarm.num_stages))
        self.view = SwarmView(config, directory, nearby)
        self._relaying = Relaying(
            calls.peer_id,
            self.state,
            compute,
            self._next_stage(config, stage),
            self._counted,
            lambda: self._changes.over(),
        )
        self._changes = Changes(
            self.state, self._relaying.settled, self._relaying.step_settled
        )
        self._snapshots = Snapshots(self.state, compute, self._changes)
        self._saving = StageSaving(
            self.state, compute, self._changes, checkpoints or NoCheckpoints()
        )
        self._joining = Joining(
            self.state,
            calls,
            compute,
            self.view,
            self._changes,
            swarm=self._swarm,
            timeout_s=config.tuning.relay_timeout_s,
            refresh_s=config.tuning.directory_refresh_s,
            max_kept_bytes=config.tuning.join_buffer_bytes,
            arrival=self.arrival,
            on_state=self._state_changed,
        )
        self._reducing = Reducing(
            self.state,
            calls,
            allreduce,
            compute,
            self._changes,
            prefix=self.view.prefix,
            swarm=self._swarm,
            timeout_s=config.tuning.allreduce_timeout_s,
        )
        self._control = StageControl(
            config,
            self.state,
            calls.peer_id,
            reducing=self._reducing,
            compute=compute,
            relaying=self._relaying,
            changes=self._changes,
            joining=self._joining,
            saving=self._saving,
            view=self.view,
            on_commit=self._committed,
            on_count=self._counted,
            on_state=self._state_changed,
        )
        self._leaving = Leaving(
            self.state,
            calls,
            compute,
            self.view,
            self._relaying,
            self._changes,
            swarm=self._swarm,
            steps=config.steps,
            call_timeout_s=config.tuning.relay_timeout_s,
            enter=self._control.enter,
            stop_joining=self._joining.cancel,
        )

    def _next_stage(self, config: ExperimentConfig, stage: int) -> NextStage | None:
        if stage == config.swarm.num_stages - 1:
            return None
        specs = self._compute.gradient_specs
        return NextStage(config, stage + 1, self._calls, self.view, specs)

    async def run(self) -> None:
        """Serves until cancelled, or the device fails."""
        await self.view.join()
        preparing = asyncio.ensure_future(
            self.arrival.timed(COMPILE, self._compute.ready())
        )
        try:
            await self._saving.resume(self._others_step)
            if self._others_step <= self.state.step:
                await self._begin_with(preparing)
            self._finish_if_last()
            await self._calls.serve(self)
            if self._others_step > self.state.step:
                self._joining.start()
            else:
                self._on_ready()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._compute.ready())
                tasks.create_task(self.view.keep_fresh())
                tasks.create_task(self._announce())
                tasks.create_task(self._say_when_idle())
                await self._changes.broken
        finally:
            preparing.cancel()
            self._joining.cancel()
            self._snapshots.close()

    async def _begin_with(self, preparing: Awaitable[None]) -> None:
        """Waits until the device is ready: there is no state to fetch meanwhile.

        Who is told to leave by then has nothing to hand over.
        """
        self.state.state = JOINING
        await preparing
        if self.state.state == JOINING:
            self.state.state = ONLINE
        await self.view.refresh()

    @property
    def _others_step(self) -> int:
        return max(self.known_step, self.view.newest_step(self.state.stage))

    @property
    def holds(self) -> dict[str, int]:
        """What is in progress or kept for others, by name: its memory, in short."""
        return {
            "microbatches": len(self._relaying),
            "gradients under way": len(self.state.settling)
            + len(self.state.settling_early),
            "counted": len(self.state.ledger) + len(self.state.early),
            "snapshots": len(self._snapshots),
        }

    def _move_to(self, request: MoveTo) -> Message:
        if self.state.follows_newer(request.round):
            return refusal(Status.OLD_ROUND, promise=list(self.state.promise))
        if self.state.state != ONLINE or request.stage == self.state.stage:
            return refusal(Status.NOT_ONLINE)
        logger.info("told to move to stage %d: %s", request.stage, request.reason)
        self.move(request.stage)
        return Message({"status": Status.OK})

    def move(self, stage: int) -> None:
        """Asks whoever runs this server to leave for another stage."""
        if not self.told_to_move.done():
            self.told_to_move.set_result(stage)

    async def announce_arrival(self, state: str) -> None:
        """Publishes, where this peer is to move to, what it will be there."""
        record = replace(self._record(state), stage=self.told_to_move.result())
        await self.view.publish(self._calls.peer_id, record)

    def stay(self) -> None:
        """Takes part again after a drain that came to nothing."""
        self.told_to_move = _unset()
        self._control.enter(ONLINE)

    async def snapshot(self) -> tuple[int, Position, list[np.ndarray]]:
        """Stage, position and state, for a peer that may have to come back."""
        return self.state.stage, self.state.position, await self._compute.state()

    async def take(self, position: Position, arrays: Sequence[np.ndarray]) -> None:
        """Begins with a state that was kept."""
        await self._compute.load_state(arrays)
        self.state.adopt(position)

    def close(self) -> None:
        """Stops the device."""
        self._compute.close()
        self._saving.close()

    @property
    def has_mates(self) -> bool:
        """Whether others serve its stage."""
        return bool(set(self.view.online(self.state.stage)) - {self._calls.peer_id})

    async def drain(self, timeout_s: float) -> bool:
        """Leaves without a loss; False if nobody took over in time."""
        return await self._leaving.drain(timeout_s)

    async def leave(self) -> None:
        """Tells the directory that this peer is gone."""
        self._control.enter(OFFLINE)
        await self.view.publish(self._calls.peer_id, self._record(OFFLINE))

    def admit(
        self, sender: str, header: Mapping[str, Any], specs: Sequence[ArraySpec]
    ) -> Message | None:
        if not self._authorised(sender):
            raise BadMessage(sender, "is not on the allow-list")
        if header.get("swarm") != self._swarm:
            return refusal(Status.WRONG_SWARM)
        try:
            request = from_header(header)
        except MalformedHeader as error:
            raise BadMessage(sender, str(error)) from error
        match request:
            case Relay():
                return self._admit_relay(sender, request, specs)
            case HandOver():
                self._check_hand_over(sender, request, specs)
            case MoveTo(stage=stage) if stage >= self._config.swarm.num_stages:
                raise BadMessage(sender, f"moves this peer to stage {stage}")
            case Prepare(loss_tokens=0):
                raise BadMessage(sender, "prepares a step without loss tokens")
            case Prepare() if not self._reducing.fits(request):
                return refusal(Status.WRONG_STAGE)
            case _ if specs:
                raise BadMessage(sender, f"{request.op} carries no arrays")
        return None

    def _check_hand_over(
        self, sender: str, request: HandOver, specs: Sequence[ArraySpec]
    ) -> None:
        expected = self._compute.sum_specs if request.losses else ()
        if tuple(specs) != tuple(expected):
            raise BadMessage(sender, "hands over a gradient sum of another shape")
        if any(i >= self._config.microbatches_per_step for i in request.losses):
            raise BadMessage(sender, "hands over a microbatch that does not exist")

    def _admit_relay(
        self, sender: str, relay: Relay, specs: Sequence[ArraySpec]
    ) -> Message | None:
        state = self.state
        if relay.stage != state.stage:
            return refusal(Status.WRONG_STAGE)
        if state.state != ONLINE:
            return refusal(Status.NOT_ONLINE)
        if relay.round < state.promise and not relay.is_guest:
            return refusal(Status.OLD_ROUND, promise=list(state.promise))
        serves = state.can_serve(relay.id, relay.counted_by, relay.training)
        if relay.generation != state.generation or not serves:
            return refusal(Status.WRONG_STEP, step=state.step)
        if list(specs) != self._relay_specs:
            raise BadMessage(
                sender,
                f"sent {list(specs)} to stage {state.stage}, which takes "
                f"{self._relay_specs}: is its config the same?",
            )
        if relay.training and relay.id.index >= self._config.microbatches_per_step:
            raise BadMessage(sender, f"there is no microbatch {relay.id.index}")
        full = len(self._relaying) >= self._config.tuning.max_queue
        if full or state.is_busy(relay.id):
            return refusal(Status.BUSY)
        return None

    async def handle(self, sender: str, message: Message) -> Message:
        self._heard_s = asyncio.get_running_loop().time()
        match request := from_header(message.header):
            case Relay():
                return await self._relay(sender, request, message)
            case Collect():
                return await self._control.collect(request)
            case DropSum():
                return await self._control.drop(request)
            case Prepare():
                return await self._control.prepare(request)
            case Commit():
                return await self._control.commit(request)
            case ResyncState():
                return await self._control.resync(request)
            case RestartRun():
                return await self._control.restart(request)
            case MoveTo():
                return self._move_to(request)
            case SaveState():
                return await self._saving.save(request)
            case CompleteSave():
                return await self._saving.complete(request)
            case HandOver():
                return await self._control.take_over(request, message.arrays)
            case Watch():
                return await answer_watch(request)
            case Locate():
                return self._control.locate()
            case FetchManifest():
                return await self._snapshots.manifest(request)
            case FetchChunk():
                return await self._snapshots.chunk(request)
            case FetchTied():
                return await self._reducing.give(request)

    async def _relay(self, sender: str, relay: Relay, message: Message) -> Message:
        """Checks again what may have changed while the body arrived, and runs."""
        specs = self._relay_specs
        if refused := self._admit_relay(sender, relay, specs):
            return refused
        tokens = message.arrays[:2] if self.state.stage == 0 else message.arrays[:1]
        too_large = any(t.max() >= self._config.model.vocab_size for t in tokens)
        if too_large or (len(tokens) > 1 and tokens[1].min() < 0):
            raise BadMessage(sender, "sent a token outside the vocabulary")
        self.state.promise_to(relay.round)
        return await self._relaying.run(relay, list(message.arrays))

    def _join_if_behind(self) -> None:
        """Who could not read the directory when it started took itself for the first.

        One step behind is not late: the commit of that one may be on its way.
        """
        state = self.state
        steps = (
            record.step
            for record in self.view.stages.get(state.stage, {}).values()
            if record.generation == state.generation
        )
        if state.state == ONLINE and max(steps, default=0) >= state.step + 2:
            logger.info("others are further: fetching the stage's state")
            self._joining.start()

    async def _announce(self) -> None:
        while True:
            self._join_if_behind()
            self._news.clear()
            await self.view.publish(self._calls.peer_id, self._record(self.state.state))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.tuning.directory_refresh_s):
                    await self._news.wait()

    async def _say_when_idle(self) -> None:
        """A run without a trainer waits; whoever reads the log should know."""
        loop = asyncio.get_running_loop()
        self._heard_s = loop.time()
        while True:
            await asyncio.sleep(IDLE_S)
            idle_s = loop.time() - self._heard_s
            if idle_s >= IDLE_S and self.state.step < self._config.steps:
                logger.warning(
                    "nobody has asked for anything for %.0f s: is there a trainer? "
                    "This peer waits at step %d",
                    idle_s,
                    self.state.step,
                )

    def _record(self, state: str) -> PeerRecord:
        return PeerRecord(
            name=self._name,
            stage=self.state.stage,
            state=state,
            generation=self.state.generation,
            step=self.state.step,
            queue=len(self._relaying),
            tokens_per_s=self._relaying.throughput.tokens_per_s or 0.0,
        )

    def _counted(self, step: int, counted: int) -> None:
        self.arrival.counted()
        self._on_count(step, counted)

    def _committed(self, counted: int) -> None:
        self.has_committed = True
        self._metrics.write(
            step=self.state.step,
            stage=self.state.stage,
            peer=self._calls.peer_id,
            microbatches_counted=counted,
            tokens_per_s=self._relaying.throughput.tokens_per_s or 0.0,
            lineage=self.state.lineage,
            **self._compute.take_record(),
            **self.arrival.take_record(),
        )
        # Not for each step: to publish a record costs questions to many peers. But who
        # starts after the first one has to know that there is a state to fetch.
        if self.state.step == 1:
            self._news.set()
        self._finish_if_last()

    def _state_changed(self) -> None:
        self._news.set()
        self.arrival.entered(self.state.state)
        if self.state.state == ONLINE:
            self._on_ready()
        self._finish_if_last()

    def _finish_if_last(self) -> None:
        if self.state.step == self._config.steps and not self._finished:
            self._finished = True
            self._on_finished()


def _unset() -> asyncio.Future[int]:
    return asyncio.get_running_loop().create_future()
