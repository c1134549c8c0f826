"""Which signals end a process, in the foreground, behind ``&`` and under ``nohup``.

An ignored signal stays ignored in a child. A shell that runs a script has its
background jobs ignore SIGINT, which our processes are asked to leave with; ``nohup``
has them ignore SIGHUP, for good reason: the terminal will be closed.
"""

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Awaitable, Iterator
from typing import TypeVar

T = TypeVar("T")

AGAIN_S = 0.05
"""After which a lost end is raised again."""


def hear_interrupts() -> None:
    """SIGINT raises ``KeyboardInterrupt``, though a background job ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _raise_lost_ends_again()


def stop_signals() -> list[signal.Signals]:
    """What ends this process: SIGINT, SIGTERM, and SIGHUP unless under ``nohup``."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def exit_on_signals() -> None:
    """Turns SIGTERM and SIGHUP into ``SystemExit``, so that ``with`` blocks clean up.

    Under ``nohup`` SIGHUP is heard and passed over, not ignored: the children would
    ignore it too, and it is what they are stopped with.
    """

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    def stay(number: int, frame: object) -> None:
        """The terminal was closed."""

    under_nohup = signal.SIGHUP not in stop_signals()
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, stay if under_nohup else leave)


def run(work: Awaitable[T]) -> T:
    """``asyncio.run`` that signals end as Ctrl-C does: ``work`` is cancelled, no more.

    An exception raised by ``exit_on_signals`` in the middle of the loop cancels all
    tasks at once, also those that ``work`` needs to close what it has opened.

    Raises:
        SystemExit: Of the signal, once ``work`` has ended.
    """
    leave = signal.getsignal(signal.SIGTERM)
    numbers = [
        n for n in stop_signals() if callable(leave) and signal.getsignal(n) is leave
    ]
    heard: list[int] = []

    async def main() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()

        def hear(number: int) -> None:
            heard.append(number)
            task.cancel()

        for number in numbers:
            loop.add_signal_handler(number, hear, number)
        return await work

    try:
        result = asyncio.run(main())
    except asyncio.CancelledError:
        if not heard:
            raise
    finally:
        for number in numbers:
            signal.signal(number, leave)
    if heard:
        raise SystemExit(128 + heard[0])
    return result


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """What would raise in the middle of the block raises at its end.

    Signals that kill without a handler of Python's still do.
    """
    came: list[int] = []
    raising = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in stop_signals()}
        raising = {
            number: handler for number, handler in found.items() if callable(handler)
        }
    for number in raising:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in raising.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _raise_lost_ends_again() -> None:
    """A handler may have its turn in a callback of the garbage collector.

    jax has one. What is raised there goes no further, and the process would go on.
    """
    report = sys.unraisablehook

    def look(unraisable) -> None:
        end = unraisable.exc_value
        if not isinstance(end, SystemExit | KeyboardInterrupt):
            report(unraisable)
            return

        def raise_again(number: int, frame: object) -> None:
            raise end

        signal.signal(signal.SIGALRM, raise_again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)

    sys.unraisablehook = look
