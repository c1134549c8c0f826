"""The order in which a device works.

All device work goes through one queue: control operations (those that read or change
parameters or the gradient sum) first, then backward, then forward, older microbatches
before younger ones. What has started always finishes and is settled, whatever became of
the task that asked for it.
"""

import asyncio
import enum
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from swarm_jax.errors import Abandoned


class Kind(enum.IntEnum):
    """Smaller goes first."""

    CONTROL = 0
    BACKWARD = 1
    FORWARD = 2


@dataclass(frozen=True, slots=True)
class Operation:
    """One piece of device work.

    Attributes:
        name: For modelled durations and error messages.
        launch: Starts it on the device and returns without waiting for it.
        fetch: Waits for what ``launch`` returned and brings it to the host.
        order: Among operations of one kind, smaller goes first; ties by age.
        settle: Called in the event loop's thread with the fetched result, or with None
            when the device failed.
        start: Called in the event loop's thread just before the device gets the work;
            False: it does not get it.
    """

    name: str
    kind: Kind
    launch: Callable[[], Any]
    fetch: Callable[[Any], Any] = lambda launched: launched
    order: int = 0
    start: Callable[[], bool] = lambda: True
    settle: Callable[[Any | None], None] = lambda result: None


@dataclass(frozen=True, slots=True)
class Finished:
    """Attributes:
    outcome: Result of the operation's ``fetch``, or the exception that ended it.
    started_s: When the device was handed the work; on any monotonic clock.
    ready_s: When it was done, on the same clock.
    """

    outcome: Future
    started_s: float
    ready_s: float


class Runner(Protocol):
    """Works off operations in the order in which they are started."""

    def start(self, operation: Operation, done: Callable[[Finished], None]) -> None:
        """Returns at once; ``done`` is called later, in the event loop's thread."""
        ...


def at_once(work: Callable[[], Any]) -> Future:
    """Does it now; its exception is the future's."""
    done: Future = Future()
    try:
        done.set_result(work())
    except Exception as error:
        done.set_exception(error)
    return done


@dataclass(order=True, slots=True)
class _Entry:
    key: tuple[int, int, int]
    operation: Operation = field(compare=False)
    waiter: asyncio.Future = field(compare=False)
    finished: Finished | None = field(default=None, compare=False)


class DeviceQueue:
    """Feeds one runner from a priority queue. Lives in the event loop's thread.

    Args:
        runner: Where the work is done.
        depth: Operations that the runner holds at once. With two, the device has its
            next one at hand while the event loop learns of the last; more would only
            take away the choice of what goes first.
    """

    def __init__(self, runner: Runner, depth: int):
        self._runner = runner
        self._depth = depth
        self._waiting: list[_Entry] = []
        self._started: deque[_Entry] = deque()
        self._ages = itertools.count()
        self._last_ready_s = float("-inf")

    @property
    def queued(self) -> int:
        """Operations that have not been handed to the device."""
        return len(self._waiting)

    async def run(self, operation: Operation) -> tuple[Any, float]:
        """Waits for the operation's turn and its result.

        Cancelling removes the operation, unless it has been started.

        Returns:
            What ``fetch`` gave, and the seconds on the device.

        Raises:
            Abandoned: ``operation.start()`` returned False.
        """
        waiter = asyncio.get_running_loop().create_future()
        key = (operation.kind, operation.order, next(self._ages))
        entry = _Entry(key, operation, waiter)
        heapq.heappush(self._waiting, entry)
        # Not a `finally` here: a task cancelled before its first step runs none.
        waiter.add_done_callback(partial(self._forget, entry))
        self._start_next()
        try:
            return await waiter
        finally:
            del entry, waiter  # an exception of it holds this frame

    def cancel_waiting(self) -> None:
        """Cancels everything that has not been started."""
        for entry in list(self._waiting):
            entry.waiter.cancel()

    def _forget(self, entry: _Entry, waiter: asyncio.Future) -> None:
        if not waiter.cancelled():
            waiter.exception()  # its task may be gone: asyncio would call it unseen
        elif entry in self._waiting:
            self._waiting.remove(entry)
            heapq.heapify(self._waiting)

    def _start_next(self) -> None:
        while self._waiting and len(self._started) < self._depth:
            entry = heapq.heappop(self._waiting)
            if entry.waiter.cancelled():
                continue
            if not entry.operation.start():
                entry.waiter.set_exception(Abandoned(entry.operation.name))
                continue
            self._started.append(entry)
            self._runner.start(entry.operation, partial(self._ready, entry))

    def _ready(self, entry: _Entry, finished: Finished) -> None:
        """Hands out results in the order of the start.

        Results are fetched side by side. If a control operation overtook a backward
        pass here, its caller would see a sum that holds more than the ledger.
        """
        entry.finished = finished
        while self._started and self._started[0].finished:
            self._hand_out(self._started.popleft())
        self._start_next()

    def _hand_out(self, entry: _Entry) -> None:
        # Its future holds the callback that holds the entry.
        finished, entry.finished = entry.finished, None
        began_s = max(finished.started_s, self._last_ready_s)
        compute_s = max(finished.ready_s - began_s, 0.0)
        self._last_ready_s = max(self._last_ready_s, finished.ready_s)
        error = finished.outcome.exception()
        result = None if error else finished.outcome.result()
        if not entry.waiter.done():
            if error:
                entry.waiter.set_exception(error)
            else:
                entry.waiter.set_result((result, compute_s))
        entry.operation.settle(result)
