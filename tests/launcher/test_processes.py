"""Child processes: logs, deaths, stopping without leftovers."""

import sys

import psutil
import pytest

from swarm_jax.errors import StartupError
from swarm_jax.launcher.processes import (
    ProcessDied,
    Processes,
    describe_exit,
    tail,
    wait_ready,
)

WAIT = "import signal; signal.pause()"
STUBBORN_WITH_CHILD = f"""
import signal, subprocess, sys
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "{WAIT}"])
Path(sys.argv[1]).write_text(str(child.pid))
signal.pause()
"""


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path / "logs") as processes:
        yield processes


def python(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_a_dead_child_tells_its_exit_and_last_lines(processes):
    code = "for i in range(40): print('line', i)\nraise SystemExit('the end')"
    child = processes.start("worker", python(code), {})
    child.popen.wait()
    obituary = child.obituary().splitlines()
    assert obituary[0].startswith("worker ended with exit code 1. Last lines of ")
    assert obituary[0].endswith("logs/worker.log:")
    assert "line 39" in obituary and "the end" in obituary
    assert "line 20" not in obituary


def test_the_environment_is_added_to_ours(processes, monkeypatch):
    monkeypatch.setenv("OURS", "1")
    code = "import os; print(os.environ['OURS'], os.environ['ADDED'])"
    child = processes.start("worker", python(code), {"ADDED": "2"})
    assert child.popen.wait() == 0
    assert tail(child.log) == "1 2"


def test_a_stubborn_child_and_its_child_are_killed(processes, tmp_path):
    pid_file = tmp_path / "pid"
    child = processes.start("worker", python(STUBBORN_WITH_CHILD, pid_file), {})
    grandchild = psutil.Process(_pid_in(child, pid_file))
    processes.stop(grace_s=0.2)
    assert describe_exit(child.exit_code) == "was killed by SIGKILL"
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def _pid_in(child, pid_file):
    """The file holds a number, which is JSON."""
    while True:
        try:
            return wait_ready(child, pid_file, 10)
        except ValueError:
            continue  # made but not yet written


def test_a_willing_child_is_not_killed(processes, tmp_path):
    code = (
        "import pathlib, signal, sys\n"
        "signal.signal(signal.SIGHUP, lambda *_: sys.exit('tidied'))\n"
        "pathlib.Path(sys.argv[1]).write_text('1')\n"
        "signal.pause()"
    )
    child = processes.start("worker", python(code, tmp_path / "ready"), {})
    _pid_in(child, tmp_path / "ready")
    processes.stop()
    assert child.exit_code == 1
    assert tail(child.log) == "tidied"


def test_waiting_for_a_child_that_ends_or_stays_silent(processes, tmp_path):
    dead = processes.start("dead", python("print('no port')"), {})
    with pytest.raises(ProcessDied, match="no port"):
        wait_ready(dead, tmp_path / "never", 10)
    silent = processes.start("silent", python(WAIT), {})
    with pytest.raises(StartupError, match="silent was not ready after 0 s: see"):
        wait_ready(silent, tmp_path / "never", 0.1)


def test_an_empty_log_is_said_to_be_empty(tmp_path):
    (tmp_path / "log").touch()
    assert tail(tmp_path / "log") == "(it is empty)"
