"""An asyncio event loop on virtual time: it never sleeps, its clock jumps."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(Exception):
    """Every task waits and no timer is set: nothing can ever happen again."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """Runs coroutines that only wait for timers and for each other.

    ``loop.time()`` starts at 0 and moves only when nothing is ready to run, straight to
    the earliest timer; so runs are as fast as their computation and deterministic.
    """

    def __init__(self):
        super().__init__()
        self._now_s = 0.0
        self._selector = self

    def time(self) -> float:
        return self._now_s

    def select(self, timeout: float | None) -> list[Any]:
        """The base class asks for I/O here; we move the clock instead."""
        if timeout is None:
            raise Deadlock(f"nothing left to wait for at {self._now_s:.3f} s")
        if timeout > 0:
            self._now_s = max(self._now_s, self._scheduled[0]._when)
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
