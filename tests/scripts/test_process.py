"""What ends a network process: its work, a signal, a notice."""

import asyncio
import logging
import os
import signal
import subprocess
import sys

import pytest

from scripts.process import log_to_stderr, until_stopped
from scripts.run_trainer import exit_code


class Node:
    """A node whose daemon lives for ever."""

    async def died(self) -> str:
        return await asyncio.Event().wait()


def stopped_by(*numbers: int, **options):
    """What ``until_stopped`` returns for work that never ends, and these signals."""

    async def main():
        for number in numbers:
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
        work = asyncio.Event().wait()
        return await until_stopped(work, Node(), **options)

    return asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_signal_that_ended_it_is_told(number):
    assert stopped_by(number) is number


def test_a_process_under_nohup_outlives_its_terminal():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert stopped_by(signal.SIGHUP, signal.SIGTERM) is signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_second_signal_does_not_wait_for_leaving():
    async def leave():
        await asyncio.Event().wait()

    assert stopped_by(signal.SIGTERM, signal.SIGINT, leave=leave) is signal.SIGTERM


def test_a_notice_is_no_signal_and_work_that_ends_gives_its_result():
    async def notice():
        return "of preemption"

    assert stopped_by(notice=notice()) is None

    async def work():
        return 7

    assert asyncio.run(until_stopped(work(), Node())) == 7


def test_a_trainer_that_was_asked_to_end_has_obeyed_and_ctrl_c_is_an_interruption():
    assert exit_code(signal.SIGTERM) == 0
    assert exit_code(signal.SIGINT) == 130


A_TRAINERS_IMPORTS = """
import logging, sys
from scripts import process, run_trainer
from swarm_jax.roles import trainer
process.log_to_stderr()
import grain
logging.getLogger("jax._src.dispatch").info("compiled")
logging.getLogger("jax._src.dispatch").warning("cannot compile")
logging.getLogger("swarm_jax.roles").info("goes on")
print(sorted({"jax", "flax", "optax"} & set(sys.modules)))
"""


def test_a_trainer_starts_without_models_and_does_not_log_what_jax_compiles():
    command = [sys.executable, "-c", A_TRAINERS_IMPORTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["['jax']"]
    told = [line.split(" ", 2)[2] for line in done.stderr.splitlines()]
    assert told == ["cannot compile", "goes on"]


def test_libraries_tell_of_problems_only(capsys, monkeypatch):
    """Unasked Orbax writes ten lines for each layer that it restores."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_stderr()
    for name in ("jax._src.dispatch", "absl", "swarm_jax.roles"):
        logging.getLogger(name).log(logging.INFO, "news of %s", name)
        logging.getLogger(name).log(logging.WARNING, "a problem of %s", name)
    printed = capsys.readouterr().err
    assert "news of swarm_jax.roles" in printed
    assert "news of absl" not in printed and "news of jax" not in printed
    assert printed.count("a problem of") == 3
