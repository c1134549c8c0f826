"""Whatever way a process ends, its daemon, port and sockets are gone at once."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from swarm_jax.net import hivemind_folder
from swarm_jax.net.hivemind_folder import SocketFolder, remove_stale_folders

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 20.0
NODE = """
import asyncio, json, os, signal, sys
from swarm_jax.net.hivemind_node import start_node

async def main(how):
    node = await start_node()
    print(json.dumps({
        "pid": os.getpid(),
        "daemon": node.daemon_pid,
        "folder": str(node._folder.path),
        "maddr": node.visible_maddrs()[0],
    }), flush=True)
    if how == "close":
        await node.close()
    elif how == "raise":
        raise RuntimeError("the end")
    elif how == "sys.exit":
        sys.exit(3)
    elif how == "os._exit":
        os._exit(3)
    elif how != "return":
        await asyncio.sleep(600)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel collects children
for line in sys.stdin:
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asyncio.run(main(line.strip()))
        break
"""
"""A process with a node for each line: to import hivemind takes two seconds."""


@pytest.fixture(autouse=True)
def runner():
    """These tests have loops of their own, in other processes."""


def wait_for(condition) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.01)


def is_gone(process: psutil.Process) -> bool:
    """No longer runs: it may be a zombie where nobody collects orphans."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def listens(maddr: str) -> bool:
    _, _, host, _, port, *_ = maddr.split("/")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def is_removed_by_a_start(folder: Path) -> bool:
    """Not by the first one if the last threads of a zombie still hold the lock."""
    SocketFolder().remove()
    return not folder.exists()


def process_of(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


@pytest.fixture(scope="module")
def nursery():
    with subprocess.Popen(
        [sys.executable, "-c", NODE],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as nursery:
        yield nursery
        nursery.stdin.close()


@pytest.fixture
def start(nursery):
    """Starts a node in a process of its own; kills what a failed test has left.

    Returns:
        That process and its daemon, None if it is gone already, and what it told.
    """
    started = []

    def start_node(how):
        print(how, file=nursery.stdin, flush=True)
        told = json.loads(nursery.stdout.readline())
        started.extend(process_of(told[which]) for which in ("pid", "daemon"))
        return *started[-2:], told

    yield start_node
    for process in filter(None, started):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize(
    "how", ["close", "return", "raise", "sys.exit", "os._exit", "SIGTERM", "SIGKILL"]
)
def test_nothing_outlives_its_process(start, how):
    child, daemon, told = start(how)
    if how.startswith("SIG"):
        child.send_signal(getattr(signal, how))
    for process in filter(None, (child, daemon)):
        wait_for(lambda process=process: is_gone(process))
    wait_for(lambda: not listens(told["maddr"]))
    wait_for(lambda: is_removed_by_a_start(Path(told["folder"])))


def test_a_daemon_that_hears_of_nothing_dies_with_its_process(start):
    """A stopped daemon notices no closed connection; the kernel kills it anyway."""
    child, daemon, _ = start("wait")
    daemon.send_signal(signal.SIGSTOP)
    child.kill()
    wait_for(lambda: is_gone(daemon))


PARENT = """
import subprocess, sys
from swarm_jax.launcher.processes import module_command
command = module_command("scripts.run_dht", sys.argv[1:])
subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL).wait()
"""


def test_a_launcher_that_is_killed_takes_its_children_with_it(tmp_path):
    ready = tmp_path / "ready"
    arguments = ["--config", "configs/tiny.py", "--ready_file", str(ready)]
    arguments += ["--host_maddrs", "/ip4/127.0.0.1/tcp/0"]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], cwd=REPOSITORY
    )
    try:
        wait_for(lambda: ready.exists() and ready.read_text().strip().endswith("}"))
        offspring = psutil.Process(parent.pid).children(recursive=True)
        assert {process.name() for process in offspring} >= {"p2pd"}
        [maddr] = json.loads(ready.read_text())["initial_peers"]
        assert listens(maddr)
    finally:
        parent.kill()
        parent.wait()
    for process in offspring:
        wait_for(lambda process=process: is_gone(process))
    wait_for(lambda: not listens(maddr))


@pytest.fixture
def own_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(hivemind_folder, "PARENT", tmp_path)
    return tmp_path


def test_a_folder_is_locked_while_its_owner_lives(own_parent):
    first = SocketFolder()
    second = SocketFolder()
    assert first.path.exists() and second.path.exists()
    first.remove()
    first.remove()
    assert list(own_parent.iterdir()) == [second.path]
    second.remove()
    assert list(own_parent.iterdir()) == []


def test_two_who_remove_a_stale_folder_at_once_leave_nothing_of_it(
    own_parent, monkeypatch
):
    stale = own_parent / f"{hivemind_folder.PREFIX}stale"
    stale.mkdir()
    for name in (hivemind_folder.OWNER, "socket", "another"):
        (stale / name).touch()
    unlink = os.unlink

    def unlink_twice(path, **options):
        unlink(path, **options)  # as the other does, a moment before
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", unlink_twice)
    remove_stale_folders()
    assert not stale.exists()


def test_only_stale_folders_are_removed(own_parent):
    stale = own_parent / f"{hivemind_folder.PREFIX}stale"
    young = own_parent / f"{hivemind_folder.PREFIX}young"
    old = own_parent / f"{hivemind_folder.PREFIX}old"
    other = own_parent / "another-program"
    held = own_parent / f"{hivemind_folder.PREFIX}held"
    for folder in (stale, young, old, other, held):
        folder.mkdir()
        (folder / "socket").touch()
    for folder in (stale, held):
        (folder / hivemind_folder.OWNER).touch()
    os.utime(old, (0, 0))
    with (held / hivemind_folder.OWNER).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_stale_folders()
    assert {path for path in own_parent.iterdir()} == {young, other, held}
