"""Changes of device and ledger together: one at a time, each to its end."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from swarm_jax.core.stage_state import StageState

T = TypeVar("T")


class Changes:
    """Runs what reads or changes device and ledger together.

    ``broken`` gets the exception when the device failed in the middle of a change: it
    can no longer be trusted, and the server ends.

    Args:
        settled: Waits until no gradient is on its way into a sum.
        step_settled: Waits until none is on its way into the sum of this step.
    """

    def __init__(
        self,
        state: StageState,
        settled: Callable[[], Awaitable[None]],
        step_settled: Callable[[], Awaitable[None]] | None = None,
    ):
        self._state = state
        self._settled = settled
        self._step_settled = step_settled or settled
        self._turn = asyncio.Lock()
        self._over = asyncio.Event()
        self._over.set()
        self.broken: asyncio.Future = asyncio.get_running_loop().create_future()

    async def run(self, change: Coroutine[Any, Any, T]) -> T:
        """Runs a change, alone.

        The caller may lose patience in the middle (a first update compiles for long);
        if that cancelled the change, the device would have gone on without the ledger.
        And no gradient may enter the sum between the two.
        """

        async def closed_to_counts() -> T:
            self._state.changing = True
            self._over.clear()
            try:
                await self._settled()
                return await change
            finally:
                self._state.changing = False
                self._over.set()

        return await self._alone(closed_to_counts(), change)

    async def hold(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs what needs the sum of this step as it is; the early one may grow."""

        async def held() -> T:
            self._state.held = True
            try:
                await self._step_settled()
                return await work
            finally:
                self._state.held = False

        return await self._alone(held(), work)

    async def over(self) -> None:
        """Returns when nothing is being changed."""
        await self._over.wait()

    async def read(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs what only needs that no change happens meanwhile; counting goes on."""
        return await self._alone(work)

    async def _alone(
        self, work: Coroutine[Any, Any, T], *inner: Coroutine[Any, Any, Any]
    ) -> T:
        async def in_turn() -> T:
            async with self._turn:
                return await work

        def ended(working: asyncio.Future) -> None:
            for coroutine in (work, *inner):
                coroutine.close()  # it was not begun, if its turn never came
            self.note_failure(working)

        working = asyncio.ensure_future(in_turn())
        working.add_done_callback(ended)
        return await asyncio.shield(working)

    def note_failure(self, change: asyncio.Future) -> None:
        error = None if change.cancelled() else change.exception()
        if error and not self.broken.done():
            self.broken.set_exception(error)
