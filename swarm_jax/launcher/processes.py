"""Child processes on one machine: logs, deaths, stopping without leftovers.

Each child has a session of its own, so that Ctrl-C in the terminal reaches the launcher
alone, which then stops the children in order. Children that are given
``--die_with_parent`` follow even a launcher that is killed with SIGKILL.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from swarm_jax.errors import StartupError, SwarmError

STOP_GRACE_S = 6.0
"""Time between asking children to end (SIGHUP) and killing them."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

POLL_S = 0.05
TAIL_LINES = 15
TAIL_BYTES = 16 * 1024


class ProcessDied(SwarmError):
    """A process that the run cannot do without ended. The message quotes its log."""


@dataclass(frozen=True, slots=True)
class Child:
    """A started process; everything that it prints goes to ``log``."""

    name: str
    popen: subprocess.Popen
    log: Path

    @property
    def exit_code(self) -> int | None:
        """None while it runs, -N when signal N killed it."""
        return self.popen.poll()

    def obituary(self) -> str:
        """How it ended and what it said last, in several lines."""
        return (
            f"{self.name} {describe_exit(self.exit_code)}. Last lines of {self.log}:\n"
            f"{tail(self.log)}"
        )


class Processes:
    """The children of a run. As a context manager it stops them all on leaving."""

    def __init__(self, log_dir: Path):
        log_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir = log_dir
        self._children: list[Child] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> Child:
        """Starts a process.

        Args:
            name: Of the log file, ``NAME.log``.
            environment: Added to the environment of this process.
        """
        log = self._log_dir / f"{name}.log"
        with log.open("w") as output:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        child = Child(name, popen, log)
        self._children.append(child)
        return child

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Ends all children and their children: SIGHUP, then SIGKILL.

        SIGHUP, since a stage server that gets SIGTERM first hands over what it has.

        A second Ctrl-C changes nothing meanwhile: it takes seconds anyway.
        """
        previous = {n: signal.signal(n, signal.SIG_IGN) for n in STOP_SIGNALS}
        try:
            alive = [child for child in self._children if child.exit_code is None]
            offspring = [p for child in alive for p in _descendants(child.popen.pid)]
            for child in alive:
                child.popen.send_signal(signal.SIGHUP)
            _wait_until(lambda: not _running(alive, offspring), grace_s)
            for process in _running(alive, offspring):
                _kill(process)
            _wait_until(lambda: not _running(alive, offspring), grace_s)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def module_command(module: str, arguments: Sequence[str]) -> list[str]:
    """Command of ``python -m module`` that dies with this process."""
    die = ["--die_with_parent", str(os.getpid())]
    return [sys.executable, "-m", module, *arguments, *die]


def wait_ready(child: Child, ready_file: Path, timeout_s: float) -> dict[str, Any]:
    """Waits for the file in which a child says how to reach it.

    Raises:
        ProcessDied: The child ended first.
        StartupError: ``timeout_s`` ran out.
    """
    _wait_until(lambda: ready_file.exists() or child.exit_code is not None, timeout_s)
    if ready_file.exists():
        return json.loads(ready_file.read_text())
    if child.exit_code is not None:
        raise ProcessDied(child.obituary())
    raise StartupError(
        f"{child.name} was not ready after {timeout_s:.0f} s: see {child.log}"
    )


def describe_exit(code: int | None) -> str:
    """For example "was killed by SIGKILL" or "ended with exit code 1"."""
    if code is None:
        return "is running"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def tail(log: Path) -> str:
    """The last lines of a log, or a remark that it is empty."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-TAIL_LINES:]) or "(it is empty)"


def _wait_until(condition: Callable[[], object], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _running(
    children: Sequence[Child], offspring: Sequence[psutil.Process]
) -> list[subprocess.Popen | psutil.Process]:
    alive = [child.popen for child in children if child.exit_code is None]
    return alive + [process for process in offspring if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    """Not gone, not replaced by another with its id, not a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill(process: subprocess.Popen | psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
