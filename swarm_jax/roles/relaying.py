"""The receiver's side of a relay: forward, deeper stages, backward, count.

Backpropagation is a nested call (design, section 1): a stage runs forward, calls the
next stage for the gradient of its output, and runs backward.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np

from swarm_jax.core.ids import NO_ROUND, MicrobatchID, Round
from swarm_jax.core.stage_state import StageState
from swarm_jax.core.throughput import ThroughputAverage
from swarm_jax.net.protocols import Message
from swarm_jax.roles.compute import Abandoned, Backward, Compute, Forward
from swarm_jax.roles.messages import Relay, Status, refusal
from swarm_jax.roles.relay import (
    Answer,
    ModelDiverged,
    NextStage,
    RefusedRound,
    RelayFailed,
)


class _Count:
    """Counts one microbatch: ``Count`` of the compute Protocol.

    Args:
        settled: Set whenever a gradient has settled.

    Attributes:
        is_too_soon: Whether it was refused only because of a change that goes on.
    """

    def __init__(
        self,
        state: StageState,
        relay: Relay,
        settled: asyncio.Event,
        on_count: Callable[[int, int], None],
    ):
        self._state = state
        self._relay = relay
        self._settled = settled
        self._on_count = on_count
        self.is_early = False
        self.is_too_soon = False

    def start(self) -> bool:
        state, id_ = self._state, self._relay.id
        if not state.may_count(id_, self._relay.round):
            self.is_too_soon = state.may_count_soon(id_, self._relay.round)
            return False
        self.is_early = id_.step > state.step
        self._settling.add(id_.index)
        return True

    def settle(self, finite: bool, loss_sum: float) -> None:
        state, id_ = self._state, self._relay.id
        assert id_.step == state.step + self.is_early
        self._settling.discard(id_.index)
        if finite:
            ledger = state.early if self.is_early else state.ledger
            ledger.add(id_.index, loss_sum)
            self._on_count(id_.step, len(ledger))
        self._settled.set()

    @property
    def _settling(self) -> set[int]:
        return self._state.settling_early if self.is_early else self._state.settling


@dataclass(slots=True)
class _Work:
    round: Round
    task: asyncio.Task
    superseded: bool = False

    def supersede(self) -> None:
        self.superseded = True
        self.task.cancel()


class Relaying:
    """All microbatches that one stage server holds.

    Args:
        next_stage: None on the last stage.
        on_count: Called with the step and how many of its microbatches are counted.
        change_over: Waits for the end of the change that goes on.
    """

    def __init__(
        self,
        peer_id: str,
        state: StageState,
        compute: Compute,
        next_stage: NextStage | None,
        on_count: Callable[[int, int], None],
        change_over: Callable[[], Awaitable[None]],
    ):
        self._peer_id = peer_id
        self._state = state
        self._compute = compute
        self._next_stage = next_stage
        self._on_count = on_count
        self._change_over = change_over
        self._orders = itertools.count()
        self._work: dict[tuple[object, MicrobatchID], _Work] = {}
        self._settled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self.throughput = ThroughputAverage()

    def __len__(self) -> int:
        return len(self._work)

    async def run(self, relay: Relay, arrays: list[np.ndarray]) -> Message:
        """Answers one relay request; the newest request for a microbatch wins.

        The first to train with this peer's newest parameters proves that all stages
        have them: the step before is replayed for nobody any more.
        """
        is_new = relay.training and self._state.age(relay.id) == 0
        if is_new and self._state.can_replay:
            self._state.can_replay = False
            self._compute.forget_previous()
        # Guests' microbatches have no names that others know.
        key = (object() if relay.is_guest else relay.training, relay.id)
        if older := self._work.get(key):
            older.supersede()
        task = asyncio.current_task()
        work = self._work[key] = _Work(relay.round, task)
        self._empty.clear()
        task.add_done_callback(lambda _: self._forget(key, work))
        try:
            return await self._run(relay, arrays)
        except ModelDiverged as error:
            return refusal(Status.DIVERGED, stage=error.stage, peers=error.peers)
        except RefusedRound as error:
            return refusal(Status.OLD_ROUND, promise=list(error.promise))
        except RelayFailed:
            return refusal(Status.NO_ROUTE)
        except Abandoned:
            return self._old_round()
        except asyncio.CancelledError:
            superseded = work.superseded
        if superseded:
            return self._old_round()
        # Not the one that was caught: its traceback holds residuals, and the task it.
        raise asyncio.CancelledError

    def cancel_older_than(self, round_: Round) -> None:
        """Guests go on: they count nothing, and no round is theirs."""
        for work in list(self._work.values()):
            if NO_ROUND < work.round < round_:
                work.supersede()

    def cancel_all(self) -> None:
        for work in list(self._work.values()):
            work.supersede()

    async def empty(self) -> None:
        """Returns when no microbatch is held."""
        await self._empty.wait()

    async def settled(self) -> None:
        """Returns when no gradient is on its way into a sum."""
        while self._state.settling or self._state.settling_early:
            await self._next_settled()

    async def step_settled(self) -> None:
        """Returns when no gradient is on its way into the sum of this step."""
        while self._state.settling:
            await self._next_settled()

    async def _next_settled(self) -> None:
        self._settled.clear()
        await self._settled.wait()

    def _old_round(self) -> Message:
        return refusal(Status.OLD_ROUND, promise=list(self._state.promise))

    def _forget(self, key: tuple[object, MicrobatchID], work: _Work) -> None:
        if self._work.get(key) is work:
            del self._work[key]
        if not self._work:
            self._empty.set()

    async def _run(self, relay: Relay, arrays: list[np.ndarray]) -> Message:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        order = next(self._orders)
        targets, x = arrays[0], arrays[1:]
        if self._next_stage is None:
            return await self._last_stage(relay, targets, x, order)
        previous = self._state.age(relay.id, relay.training)
        forward = await self._compute.forward(
            x, keep=relay.training, order=order, previous=previous
        )
        if not forward.finite:
            return refusal(Status.NONFINITE)
        sent_s = loop.time()
        deeper = await self._send_deeper(relay, targets, forward, start_s)
        deeper_s = loop.time() - sent_s
        if not relay.training:
            return self._reply(relay, deeper, [], forward.compute_s, deeper_s)
        backward = await self._backward(relay, forward, deeper, order)
        if not backward.finite:
            return refusal(Status.NONFINITE)
        compute_s = forward.compute_s + backward.compute_s
        self.throughput.update(targets.size, compute_s)
        return self._reply(relay, deeper, backward.grad_x, compute_s, deeper_s)

    async def _last_stage(
        self,
        relay: Relay,
        targets: np.ndarray,
        x: list[np.ndarray],
        order: int,
    ) -> Message:
        if not relay.training:
            loss_sum = await self._compute.loss(x, targets, order=order)
            finite, grad_x, compute_s = np.isfinite(loss_sum), [], 0.0
        else:
            result = await self._counting(
                relay,
                lambda count: self._compute.loss_backward(
                    x,
                    targets,
                    count=count,
                    order=order,
                    previous=self._state.age(relay.id),
                ),
            )
            loss_sum, finite = result.loss_sum, result.finite
            grad_x, compute_s = result.grad_x, result.compute_s
            self.throughput.update(targets.size, compute_s)
        if not finite:
            return refusal(Status.NONFINITE)
        return self._reply(relay, Answer([], loss_sum, []), grad_x, compute_s, 0.0)

    async def _send_deeper(
        self, relay: Relay, targets: np.ndarray, forward: Forward, start_s: float
    ) -> Answer:
        spent_s = asyncio.get_running_loop().time() - start_s
        deeper = replace(
            relay,
            stage=relay.stage + 1,
            budget_s=max(0.0, relay.budget_s - spent_s),
        )
        return await self._next_stage.send(deeper, [targets, *forward.y])

    async def _backward(
        self, relay: Relay, forward: Forward, deeper: Answer, order: int
    ) -> Backward:
        return await self._counting(
            relay,
            lambda count: self._compute.backward(
                forward.residuals, deeper.gradient, count=count, order=order
            ),
        )

    async def _counting(
        self, relay: Relay, backward: Callable[[_Count | None], Awaitable[Backward]]
    ) -> Backward:
        """Runs backward, counted unless the microbatch only passes through here."""
        wanted = self._state.stage in relay.counted_by
        if not wanted or self._state.has_counted(relay.id):
            return await backward(None)
        while True:
            count = _Count(self._state, relay, self._settled, self._on_count)
            try:
                return await backward(count)
            except Abandoned:
                if self._state.has_counted(relay.id):
                    return await backward(None)
                if not count.is_too_soon:
                    raise
            await self._change_over()

    def _reply(
        self,
        relay: Relay,
        deeper: Answer,
        grad_x: list[np.ndarray],
        compute_s: float,
        deeper_s: float,
    ) -> Message:
        hop = {"peer": self._peer_id, "stage": relay.stage, "compute_s": compute_s}
        header = {
            "status": Status.OK,
            "loss_sum": deeper.loss_sum,
            "deeper_s": deeper_s,
            "trace": [hop, *deeper.trace],
        }
        return Message(header, grad_x)
