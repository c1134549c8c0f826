"""Which signals end a process, in the foreground, behind ``&`` and under ``nohup``.

An ignored signal stays ignored in a child. A shell that runs a script has its
background jobs ignore SIGINT, which our processes are asked to leave with; ``nohup``
has them ignore SIGHUP, for good reason: the terminal will be closed.
"""

import signal


def hear_interrupts() -> None:
    """SIGINT raises ``KeyboardInterrupt``, though a background job ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
