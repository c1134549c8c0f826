"""Sends microbatches into the first stage: to train on, or to validate with."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.closing import Feed
from swarm_jax.core.ids import MicrobatchID, Round
from swarm_jax.core.window import FixedWindow, Window
from swarm_jax.roles.messages import Relay
from swarm_jax.roles.relay import Answer, MovedOn, NextStage, NoRoute, RelayFailed

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

        Args:
            answered: Called with a microbatch's index, its tokens and its answer.
        """

        async def one(index: int) -> None:
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
            answered(index, batch.targets.size, answer)

        return await self._for_each(sorted(action.missing), one, self._window)

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
    ) -> list[RelayFailed]:
        """Stops to send when a stage cannot be reached: the leader looks why."""
        failures: list[RelayFailed] = []
        in_flight: set[asyncio.Task] = set()
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
            in_flight.discard(task)
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
                in_flight.add(task)
                task.add_done_callback(ended)
            is_full = False
        return failures


def _mean(sums: Sequence[tuple[float, int]]) -> float:
    """Of losses, from pairs of a sum and how many it is of."""
    losses, tokens = zip(*sums, strict=True) if sums else ((), ())
    return math.fsum(losses) / max(1, sum(tokens))
