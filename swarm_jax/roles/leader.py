"""Leads the swarm through its steps: one stateless loop around one pure function."""

import asyncio
import logging
import math
from collections.abc import Callable, Collection
from dataclasses import replace

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.closing import (
    Close,
    CommitRest,
    Done,
    Drop,
    Feed,
    Restart,
    Resync,
    Wait,
    next_action,
)
from swarm_jax.core.ledger import audit
from swarm_jax.core.newest import Newest
from swarm_jax.core.reports import JOINING, CommitRecord, Report
from swarm_jax.core.saves import restart_step
from swarm_jax.errors import Diverged
from swarm_jax.roles.feeding import Data, Feeder
from swarm_jax.roles.journal import Journal
from swarm_jax.roles.leadership import Leadership, accepted
from swarm_jax.roles.messages import (
    Commit,
    DropSum,
    MalformedHeader,
    Request,
    RestartRun,
    ResyncState,
    report_from_header,
)
from swarm_jax.roles.peers import SwarmView
from swarm_jax.roles.preparing import GradientDiverged, Preparing
from swarm_jax.roles.relay import ModelDiverged, NoRoute, RefusedRound, RelayFailed
from swarm_jax.roles.saving import Saving

logger = logging.getLogger(__name__)

WAIT_S = 0.5
RETRY_S = 0.1


class Leader:
    """One term of one trainer (design, section 5).

    Args:
        newest: What is known of how far the run has been; more is noted in it.
        server_command: The command that starts a peer of a stage, for people.
        restart_if_lost: Whether the run may go back, to a checkpoint or to step 0, when
            a stage's state is gone.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        leadership: Leadership,
        view: SwarmView,
        data: Data,
        feeder: Feeder,
        journal: Journal,
        saving: Saving,
        newest: Newest,
        server_command: Callable[[int], str],
        restart_if_lost: Callable[[], bool],
    ):
        self._config = config
        self._leadership = leadership
        self._view = view
        self._data = data
        self._feeder = feeder
        self._journal = journal
        self._saving = saving
        self._newest = newest
        self._server_command = server_command
        self._restart_if_lost = restart_if_lost
        self._lost_since_s: float | None = None
        self._preparing = Preparing(config, leadership)

    async def lead(self) -> None:
        """Returns when every stage has taken all its steps.

        Raises:
            Deposed: Another trainer leads.
            Diverged: The model gave non-finite values and the config says stop.
        """
        while True:
            reports = await self._collect()
            self._saving.consider(
                reports, self._leadership.round, self._journal.figures
            )
            action = next_action(
                reports,
                num_stages=self._config.swarm.num_stages,
                steps=self._config.steps,
                microbatches=self._config.microbatches_per_step,
                newest_seen=self._newest,
                left_out=self._preparing.left_out,
                tied_stages=self._config.tied_stages,
                delayed_updates=self._config.swarm.delayed_updates,
            )
            if not (isinstance(action, Wait) and action.is_lost):
                self._lost_since_s = None
            match action:
                case Feed() | Close() | Done() if self._may_validate(action, reports):
                    await self._validate(reports)
                case Feed():
                    await self._feed(action, reports)
                case Drop():
                    await self._drop(action)
                case Close(ahead=None):
                    await self._close(action, reports)
                case Close():
                    await self._close_and_feed(action, action.ahead, reports)
                case CommitRest(record, peers, generation):
                    await self._commit(record, peers, generation)
                case Resync(peers):
                    request = ResyncState(round=self._leadership.round)
                    await self._insist(peers, request)
                case Restart(generation, step, peers):
                    await self._restart(generation, step, peers)
                case Wait() if self._may_restart(action):
                    generation = 1 + self._newest.position[0]
                    step = restart_step(reports, self._config.swarm.num_stages)
                    logger.warning("%s: the run %s", action.reason, _going_back(step))
                    await self._restart(generation, step, self._view.everyone())
                case Wait():
                    step = restart_step(reports, self._config.swarm.num_stages)
                    await self._wait(action, step)
                case Done() if self._saving.under_way:
                    await self._saving.finish()
                case Done():
                    await self._leadership.finish()
                    return

    async def _collect(self) -> list[Report]:
        replies = await self._leadership.collect(self._view.everyone())
        reports = []
        for peer in accepted(replies):
            try:
                report = report_from_header(peer, replies[peer])
                self._check(report)
                reports.append(report)
            except MalformedHeader as error:
                logger.warning("report of %s: %s", peer[-6:], error)
        self._journal.collected(reports)
        self._note_newest(reports)
        return reports

    def _note_newest(self, reports: Collection[Report]) -> None:
        for report in reports:
            self._newest.saw(report.generation, report.step)
            self._newest.saw(*report.newest_heard)
            if report.last_commit:
                self._newest.knows(report.generation, report.last_commit)
        self._newest.saw(*self._view.newest)

    def _check(self, report: Report) -> None:
        """Raises ``MalformedHeader`` for a report that cannot be true."""
        is_last = report.stage == self._config.swarm.num_stages - 1
        losses = report.losses.keys() if report.losses is not None else None
        counted = report.counted | report.early
        unknown = counted - set(range(self._config.microbatches_per_step))
        too_far = max(report.step, report.newest_heard[1]) > self._config.steps
        if too_far or unknown or (is_last and losses != report.counted):
            raise MalformedHeader("its step or ledger does not fit the run")

    async def _feed(self, action: Feed, reports: Collection[Report]) -> None:
        """Sends nothing to who is silent: what it counts could not be closed with."""
        self._journal.feeding(action.step)
        past = self._leadership.silent | self._feeder.slow(self._view.everyone())
        failures = await self._feeder.feed(
            replace(action, avoid=action.avoid | past),
            self._leadership.round,
            self._journal.answered,
        )
        for failure in failures:
            await self._react(failure, action.step, reports)
        if failures:
            if all(isinstance(failure, NoRoute) for failure in failures):
                self._journal.waiting(f"Waiting: {failures[0]}")
            await self._view.refresh()

    async def _close_and_feed(
        self, action: Close, ahead: Feed, reports: Collection[Report]
    ) -> None:
        """Both in one round, to the end: the next round would cancel what is fed."""
        feeding = asyncio.ensure_future(self._feed_ahead(ahead))
        try:
            await self._close(action, reports)
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def _feed_ahead(self, action: Feed) -> None:
        """What fails is fed again, if need be, when the step before is closed."""
        self._journal.feeding_ahead(action.step)
        failures = await self._feeder.feed(
            replace(action, avoid=action.avoid | self._leadership.silent),
            self._leadership.round,
            self._journal.answered_ahead,
        )
        for failure in failures:
            if isinstance(failure, RefusedRound):
                self._leadership.check_promise(failure.promise)

    async def _react(
        self, failure: RelayFailed, step: int, reports: Collection[Report]
    ) -> None:
        match failure:
            case RefusedRound(promise=promise):
                self._leadership.check_promise(promise)
            case ModelDiverged():
                await self._diverged(step, str(failure), reports)

    async def _drop(self, action: Drop) -> None:
        request = DropSum(
            round=self._leadership.round,
            generation=action.generation,
            step=action.step,
        )
        await self._insist([action.peer], request)

    async def _close(self, action: Close, reports: Collection[Report]) -> None:
        """Prepare in every stage, then commit everywhere."""
        groups = action.groups
        microbatches = self._config.microbatches_per_step
        ledgers = audit(
            {s: [r.counted for r in group] for s, group in groups.items()}, microbatches
        )
        assert ledgers.exact, f"step {action.step} would be closed with {ledgers}"
        loss_tokens = self._data.step_loss_tokens(action.step)
        try:
            norm = await self._preparing.prepare(action, loss_tokens)
        except GradientDiverged as error:
            await self._diverged(action.step, str(error), reports)
            return
        if norm is None:
            await asyncio.sleep(RETRY_S)
            return
        if action.record is not None:
            return  # committed elsewhere: the next round tells these stages, too
        losses = [r.losses or {} for r in groups[self._config.swarm.num_stages - 1]]
        self._journal.closing(
            action.step,
            loss_sum=math.fsum(loss for each in losses for loss in each.values()),
            loss_tokens=loss_tokens,
            ledgers=ledgers,
        )
        members = [
            r for g in (groups, action.joiners) for each in g.values() for r in each
        ]
        record = CommitRecord(action.step, norm)
        await self._commit(record, [r.peer for r in members], action.generation)

    async def _commit(
        self, record: CommitRecord, peers: Collection[str], generation: int
    ) -> None:
        request = Commit(
            round=self._leadership.round,
            generation=generation,
            step=record.step,
            gradient_norm=record.gradient_norm,
        )
        self._newest.knows(generation, record)
        if await self._insist(peers, request):
            self._preparing.committed()
            self._journal.committed(record)

    async def _insist(self, peers: Collection[str], request: Request) -> set[str]:
        """Asks for a change; if nobody makes it, waits a little: the loop asks again.

        Returns:
            Who has made it.
        """
        agreed = await self._leadership.insist(peers, request)
        if not agreed:
            await asyncio.sleep(RETRY_S)
        return agreed

    async def _diverged(
        self, step: int, what: str, reports: Collection[Report]
    ) -> None:
        """Stops the run, or commits the step everywhere without an update.

        A step that some stages have applied already cannot be skipped: it is tried
        again.

        Raises:
            Diverged: The config says stop.
        """
        if self._config.swarm.on_nonfinite == "stop":
            raise Diverged(
                f"The model diverged at step {step}: {what}. No peer is at fault. "
                "Lower optimizer.learning_rate, or set swarm.on_nonfinite='skip_step'"
            )
        if any(r.step > step and r.state != JOINING for r in reports):
            logger.warning("step %d, which others have applied: %s", step, what)
            await asyncio.sleep(RETRY_S)
            return
        logger.warning("step %d is skipped: %s", step, what)
        self._leadership.next_round()
        self._journal.skipping(step)
        members = [r for r in reports if r.step == step or r.state == JOINING]
        generation = max(report.generation for report in reports)
        await self._commit(
            CommitRecord(step, None), [r.peer for r in members], generation
        )

    def _may_validate(
        self, action: Feed | Close | Done, reports: Collection[Report]
    ) -> bool:
        """Not while a stage gets a step again: the others must keep its parameters."""
        newest = max(report.step for report in reports)
        is_replay = not isinstance(action, Done) and action.step < newest
        return self._journal.validation_due and not is_replay

    async def _validate(self, reports: Collection[Report]) -> None:
        newest = max(reports, key=lambda r: (r.generation, r.step))
        with self._journal.validating():
            losses, failures = await self._feeder.validation_losses(
                newest, self._leadership.round, self._leadership.silent
            )
        for failure in failures:
            match failure:
                case RefusedRound(promise=promise):
                    self._leadership.check_promise(promise)
                case ModelDiverged() if self._config.swarm.on_nonfinite == "stop":
                    raise Diverged(f"Validation after step {newest.step}: {failure}")
                case ModelDiverged():
                    self._journal.validated(None)
                    return
        if not failures:
            self._journal.validated(losses)

    async def _wait(self, action: Wait, step: int) -> None:
        """Args:
        step: Of what the run could go back to.
        """
        names = ", ".join(map(str, action.stages))
        reason = action.reason
        records = [self._view.stages.get(stage, {}) for stage in action.stages]
        peers = frozenset(peer for stage in records for peer in stage)
        if busy := peers & self._leadership.busy:
            reason = "no peer is ready"
            advice = f"Still at what they were asked to do: {_short(busy)}"
        elif action.is_lost and (silent := peers & self._leadership.silent):
            advice = f"These do not answer, and may have it: {_short(silent)}"
        elif action.is_lost:
            advice = (
                "Bring one of its former peers back, or type restart here (or start "
                f"with --restart_if_lost): then the run {_going_back(step)}"
            )
        else:
            advice = f"Start a peer: {self._server_command(min(action.stages))}"
        stages = "stage" if len(action.stages) == 1 else "stages"
        self._journal.waiting(f"Waiting: {stages} {names}: {reason}. {advice}")
        await asyncio.sleep(WAIT_S)
        await self._view.refresh()

    def _may_restart(self, action: Wait) -> bool:
        """Whether the state is gone for good, and the user said to start again."""
        may = action.is_lost and not self._leadership.busy and self._restart_if_lost()
        if not may:
            return False
        now_s = asyncio.get_running_loop().time()
        if self._lost_since_s is None:
            self._lost_since_s = now_s
        return now_s - self._lost_since_s >= self._config.tuning.lost_stage_s

    async def _restart(
        self, generation: int, step: int, peers: Collection[str]
    ) -> None:
        request = RestartRun(
            round=self._leadership.round, generation=generation, step=step
        )
        await self._insist(peers, request)


def _going_back(step: int) -> str:
    return f"goes on from the checkpoint of step {step}" if step else "starts again"


def _short(peers: Collection[str]) -> str:
    return ", ".join(sorted(peer[-6:] for peer in peers))
