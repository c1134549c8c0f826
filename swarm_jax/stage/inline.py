"""The device in the event loop's thread: for tests, also on a virtual clock."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from swarm_jax.stage.compute import StageCompute
from swarm_jax.stage.programs import StagePrograms
from swarm_jax.stage.queue import Finished, Operation
from swarm_jax.stage.residuals import ResidualBudget


class InlineCompute(StageCompute):
    """Computes for real, but takes as long as it is told.

    Args:
        programs: What the device runs.
        init: Makes the initial parameters.
        duration_s: Seconds on the event loop's clock that an operation (by its name)
            keeps the device busy.
        residuals, delayed_updates: As in ``StageCompute``.
    """

    def __init__(
        self,
        programs: StagePrograms,
        init: Callable[[], Any],
        duration_s: Callable[[str], float] = lambda name: 0.0,
        residuals: ResidualBudget | None = None,
        delayed_updates: bool = False,
    ):
        super().__init__(
            programs,
            init,
            _InlineRunner(duration_s),
            residuals=residuals,
            delayed_updates=delayed_updates,
        )
        self._begun.result()


class _InlineRunner:
    def __init__(self, duration_s: Callable[[str], float]):
        self._duration_s = duration_s

    def start(self, operation: Operation, done: Callable[[Finished], None]) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        outcome: Future = Future()
        try:
            outcome.set_result(operation.fetch(operation.launch()))
        except Exception as error:  # belongs to whoever waits for the operation
            outcome.set_exception(error)
        loop.call_later(
            self._duration_s(operation.name),
            lambda: done(Finished(outcome, started_s, loop.time())),
        )
