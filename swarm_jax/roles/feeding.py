"""Sends microbatches into the first stage: to train on, or to validate with."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.closing import Feed
from swarm_jax.core.ids import MicrobatchID, Round
from swarm_jax.core.pace import Pace
from swarm_jax.core.window import FixedWindow, Window
from swarm_jax.roles.messages import Relay
from swarm_jax.roles.relay import (
    Answer,
    MovedOn,
    NextStage,
    NoRoute,
    RelayFailed,
    Straggled,
)

logger = logging.getLogger(__name__)


class Microbatch(Protocol):
    """int32 [B, L] each; targets are negative where no loss is taken."""

    inputs: np.ndarray
    targets: np.ndarray
    loss_tokens: int


class Data(Protocol):
    """Tokens as a function of their names; ``digest`` names corpus and tokenizer."""

    digest: str

    def microbatch(self, step: int, index: int) -> Microbatch: ...

    def step_loss_tokens(self, step: int) -> int:
        """The sum over the step's microbatches; cheap; 1 or more."""
        ...

    def validation_microbatch(self, name: str, index: int) -> Microbatch: ...


class Placed(Protocol):
    """A peer's report, or a place of its own."""

    generation: int
    step: int


class Feeder:
    """Keeps a bounded number of microbatches in the swarm."""

    def __init__(self, config: ExperimentConfig, data: Data, first_stage: NextStage):
        self._config = config
        self._data = data
        self._first_stage = first_stage
        tuning = config.tuning
        limit = tuning.microbatches_in_flight
        is_fixed = tuning.window == "fixed"
        self._window = FixedWindow(limit) if is_fixed else Window(limit)
        self._hurried: tuple[int, int] | None = None
        self._fast: frozenset[str] | None = None

    @property
    def window(self) -> int:
        """How many microbatches it keeps in flight now."""
        return self._window.size

    async def feed(
        self,
        action: Feed,
        round_: Round,
        answered: Callable[[int, int, Answer], None],
    ) -> list[RelayFailed]:
        """Sends what is missing, waits for all of it, and returns what went wrong.

        Once in a step the last few are given up if they are late: the next round
        cancels them, and what nobody has counted is missing still.

        Args:
            answered: Called with a microbatch's index, its tokens and its answer.
        """
        loop, pace = asyncio.get_running_loop(), Pace()

        async def one(index: int) -> None:
            sent_s = loop.time()
            batch = self._data.microbatch(action.step, index)
            answer = await self._send(
                batch,
                Relay(
                    round=round_,
                    generation=action.generation,
                    stage=0,
                    id=MicrobatchID(action.step, index),
                    counted_by=action.missing[index],
                    training=True,
                    avoid=action.avoid,
                    budget_s=self._config.tuning.relay_timeout_s,
                ),
            )
            pace.answered(loop.time() - sent_s, answer.trace)
            answered(index, batch.targets.size, answer)

        self._fast = None
        step = action.generation, action.step
        may_hurry = step != self._hurried
        failures = await self._for_each(
            sorted(action.missing), one, self._window, pace if may_hurry else None
        )
        if any(isinstance(failure, Straggled) for failure in failures):
            self._hurried, self._fast = step, pace.fast()
        return failures

    def slow(self, peers: Iterable[str]) -> frozenset[str]:
        """Those of ``peers`` past whom what was given up just now is sent again."""
        return frozenset() if self._fast is None else frozenset(peers) - self._fast

    async def validation_losses(
        self,
        position: Placed,
        round_: Round,
        avoid: frozenset[str] = frozenset(),
    ) -> tuple[dict[str, float], list[RelayFailed]]:
        """Mean loss over each validation set, through the swarm; and what failed.

        Args:
            position: Of the parameters to use.
            round_: ``NO_ROUND`` of a guest.
            avoid: Peers that nothing is sent to.

        Returns:
            Losses by the name of their metric.
        """
        settings = self._config.validation
        count = settings.sequences // self._config.swarm.microbatch_size
        metrics = list(settings.metrics.items())
        sums: dict[str, list[tuple[float, int]]] = {name: [] for name, _ in metrics}

        async def one(index: int) -> None:
            name = metrics[index // count][0]
            batch = self._data.validation_microbatch(name, index % count)
            answer = await self._send(
                batch,
                Relay(
                    round=round_,
                    generation=position.generation,
                    stage=0,
                    id=MicrobatchID(position.step, index),
                    counted_by=frozenset(),
                    training=False,
                    avoid=avoid,
                    budget_s=self._config.tuning.relay_timeout_s,
                ),
            )
            sums[name].append((answer.loss_sum, batch.loss_tokens))

        window = FixedWindow(self._window.size)
        failures = await self._for_each(range(len(metrics) * count), one, window)
        return {metric: _mean(sums[name]) for name, metric in metrics}, failures

    async def _send(self, batch: Microbatch, relay: Relay) -> Answer:
        return await self._first_stage.send(relay, [batch.targets, batch.inputs])

    async def _for_each(
        self,
        indices: Iterable[int],
        send: Callable[[int], Awaitable[None]],
        window: FixedWindow | Window,
        pace: Pace | None = None,
    ) -> list[RelayFailed]:
        """Stops to send when a stage cannot be reached: the leader looks why.

        Args:
            pace: Says when to give up the last ones; None: never.
        """
        failures: list[RelayFailed] = []
        in_flight: dict[asyncio.Task, float] = {}
        changed = asyncio.Event()
        is_full = False
        loop = asyncio.get_running_loop()

        async def one(index: int) -> None:
            try:
                await send(index)
                if is_full:
                    window.answered(loop.time())
            except RelayFailed as error:
                logger.info("microbatch %d: %s", index, error)
                failures.append(error)

        def ended(task: asyncio.Task) -> None:
            del in_flight[task]
            changed.set()

        window.restart()
        async with asyncio.TaskGroup() as tasks:
            for index in indices:
                while len(in_flight) >= window.size:
                    is_full = True
                    changed.clear()
                    await changed.wait()
                if any(isinstance(failure, NoRoute | MovedOn) for failure in failures):
                    break
                task = tasks.create_task(one(index))
                in_flight[task] = loop.time()
                task.add_done_callback(ended)
            is_full = False
            if pace and not failures and await _are_late(in_flight, pace):
                failures.append(Straggled(f"{len(in_flight)} microbatches are late"))
                logger.info("sent again: %s", failures[-1])
                for task in in_flight:
                    task.cancel()
        return failures


async def _are_late(in_flight: Mapping[asyncio.Task, float], pace: Pace) -> bool:
    """Waits for the last ones; False if all have come in time.

    Args:
        in_flight: When each was sent; who ends goes.
    """
    loop = asyncio.get_running_loop()
    while in_flight:
        left_s = None
        if (patience_s := pace.patience_s(len(in_flight))) is not None:
            left_s = max(in_flight.values()) + patience_s - loop.time()
        ended, _ = await asyncio.wait(
            in_flight,
            timeout=left_s and max(0.0, left_s),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not ended:
            return True
    return False


def _mean(sums: Sequence[tuple[float, int]]) -> float:
    """Of losses, from pairs of a sum and how many it is of."""
    losses, tokens = zip(*sums, strict=True) if sums else ((), ())
    return math.fsum(losses) / max(1, sum(tokens))
