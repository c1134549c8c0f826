"""All adapters behind one face, and coroutine tests on one event loop per session.

hivemind's nodes are real p2pd processes, kept for the whole session: one loop for all
tests. Each test gets fresh peers on them, under a protocol name of its own.
"""

import asyncio
import inspect
import itertools
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest

from swarm_jax.core.bans import Bans
from swarm_jax.errors import BadMessage
from swarm_jax.net.hivemind_allreduce import HivemindAllReduce
from swarm_jax.net.hivemind_calls import HivemindCalls
from swarm_jax.net.hivemind_directory import HivemindDirectory
from swarm_jax.net.hivemind_node import HivemindNode, start_node
from swarm_jax.net.link import Link
from swarm_jax.net.local import LocalNetwork
from swarm_jax.net.protocols import AllReduce, Directory, Message, PeerCalls

# Three of them must be more than a busy machine holds up a process.
HEARTBEAT_S = 0.5
BAN_S = 0.5
MAX_BAN_S = 4.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
TEST_TIMEOUT_S = 60.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs ``async def`` tests on the session's loop, each with a deadline."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def test():
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await pyfuncitem.obj(**arguments)

    pyfuncitem.funcargs["runner"].run(test())
    return True


@pytest.fixture(scope="session")
def session_runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def _our_tasks(runner: asyncio.Runner) -> set[asyncio.Task]:
    return {
        task
        for task in asyncio.all_tasks(runner.get_loop())
        if "swarm_jax" in task.get_coro().cr_code.co_filename
        # Nodes outlive tests here, and look after their contacts as long as they live.
        and not task.get_coro().cr_code.co_filename.endswith("contacts.py")
    }


async def until(condition: Callable[[], object]) -> None:
    """Waits for what happens on another task; the test's deadline bounds it."""
    while not condition():
        await asyncio.sleep(0.005)


@pytest.fixture(name="until")
def until_fixture():
    return until


@pytest.fixture(autouse=True)
def runner(session_runner) -> Iterator[asyncio.Runner]:
    """The loop; a test fails that leaves tasks of ours behind."""
    before = _our_tasks(session_runner)

    async def settled():
        async with asyncio.timeout(5):
            await until(lambda: not _our_tasks(session_runner) - before - {me()})

    def me():
        return asyncio.current_task()

    yield session_runner
    session_runner.run(settled())


@dataclass(slots=True)
class Peer:
    """One peer of a swarm under test."""

    peer_id: str
    calls: PeerCalls
    directory: Directory
    allreduce: AllReduce
    kill: Callable[[], None]
    freeze: Callable[[], None]
    thaw: Callable[[], None]
    close: Callable[[], Awaitable[None]]


class Swarm:
    """Makes peers that can reach each other."""

    heartbeat_s = HEARTBEAT_S

    def __init__(self, make_peer: Callable[[], Awaitable[Peer]]):
        self._make_peer = make_peer
        self.peers: list[Peer] = []

    async def peer(self) -> Peer:
        self.peers.append(await self._make_peer())
        return self.peers[-1]

    async def close(self) -> None:
        for peer in self.peers:
            peer.thaw()
        for peer in self.peers:
            await peer.close()


class Nodes:
    """hivemind nodes of the session, lent to one test after the other."""

    def __init__(self):
        self.free: list[HivemindNode] = []
        self.all: list[HivemindNode] = []
        self.pids: list[int] = []
        self.numbers = itertools.count()

    async def take(self) -> HivemindNode:
        if self.free:
            node = self.free.pop(0)
            node.bans = Bans(BAN_S, MAX_BAN_S)
            return node
        alive = [node for node in self.all if node.p2p._child.returncode is None]
        maddrs = alive[0].visible_maddrs() if alive else []
        node = await start_node(initial_peers=maddrs, bans=Bans(BAN_S, MAX_BAN_S))
        self.all.append(node)
        self.pids.append(node.daemon_pid)
        return node


@pytest.fixture(scope="session")
def nodes(session_runner) -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes

    async def close():
        for node in nodes.all:
            await node.close()

    session_runner.run(close())
    for pid in nodes.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.fixture
def make_hivemind_peer(nodes) -> Callable[[], Awaitable[Peer]]:
    return _peers_on(nodes, same_host=False)


@pytest.fixture
def make_same_host_peer(nodes) -> Callable[[], Awaitable[Peer]]:
    return _peers_on(nodes, same_host=True)


def _links(*all_calls: HivemindCalls) -> list[Link]:
    links = []
    for calls in all_calls:
        dials = [dial for dial in calls._dials.values() if dial.done()]
        links += [dial.result() for dial in dials if not dial.exception()]
        links += [link for some in calls._callees.values() for link in some]
    return links


def _peers_on(nodes: Nodes, *, same_host: bool) -> Callable[[], Awaitable[Peer]]:
    """Makes peers of one new swarm.

    All are in this process. So what the death or the stop of one would do to its direct
    streams is done to them by hand: they end; or nothing is read or written.
    """
    protocol = f"test{next(nodes.numbers)}"

    async def make_peer() -> Peer:
        node = await nodes.take()
        calls = HivemindCalls(
            node,
            protocol,
            heartbeat_s=HEARTBEAT_S,
            max_message_bytes=MAX_MESSAGE_BYTES,
            same_host=same_host,
        )
        allreduce = await HivemindAllReduce.create(
            node,
            f"{protocol}/allreduce",
            heartbeat_s=HEARTBEAT_S,
            same_host=same_host,
        )
        both = calls, allreduce._calls
        killed = []

        def kill():
            killed.append(True)
            os.kill(node.daemon_pid, signal.SIGKILL)
            if same_host:
                for entered in both:
                    entered._same_host._entrance.close()
                for link in _links(*both):
                    link.abort()

        def send(number):
            if not killed:
                os.kill(node.daemon_pid, number)
                for link in _links(*both) if same_host else ():
                    _stop(link) if number == signal.SIGSTOP else _go_on(link)

        async def close():
            await calls.close()
            await allreduce.close()
            if not killed:
                nodes.free.append(node)

        return Peer(
            node.peer_id,
            calls,
            HivemindDirectory(node),
            allreduce,
            kill,
            lambda: send(signal.SIGSTOP),
            lambda: send(signal.SIGCONT),
            close,
        )

    return make_peer


def _stop(link: Link) -> None:
    link._transport.pause_reading()
    link.pause_writing()


def _go_on(link: Link) -> None:
    if not link._transport.is_reading():
        link._transport.resume_reading()
        link.resume_writing()


@pytest.fixture
def make_local_peer() -> Callable[[], Awaitable[Peer]]:
    network = LocalNetwork(heartbeat_s=HEARTBEAT_S)
    numbers = itertools.count()

    async def make_peer() -> Peer:
        peer_id = f"peer{next(numbers)}"
        calls = network.calls(peer_id)
        return Peer(
            peer_id,
            calls,
            network.directory(peer_id),
            network.allreduce(peer_id),
            lambda: network.kill(peer_id),
            lambda: network.freeze(peer_id),
            lambda: network.thaw(peer_id),
            calls.close,
        )

    return make_peer


@pytest.fixture(params=["local", "hivemind"])
def swarm(request, runner) -> Iterator[Swarm]:
    """A swarm of each adapter."""
    swarm = Swarm(request.getfixturevalue(f"make_{request.param}_peer"))
    yield swarm
    runner.run(swarm.close())


@pytest.fixture
def swarm_of_hivemind(runner, make_hivemind_peer) -> Iterator[Swarm]:
    swarm = Swarm(make_hivemind_peer)
    yield swarm
    runner.run(swarm.close())


class ScriptedService:
    """Does what the header's ``do`` says."""

    def __init__(self):
        self.admitted: list[tuple[str, dict, tuple]] = []
        self.handled = 0
        self.hanging = 0
        self.cancelled = 0

    def admit(self, sender, header, specs):
        self.admitted.append((sender, dict(header), tuple(specs)))
        if header.get("do") == "refuse":
            return Message({"refused": header.get("why", "")})
        if header.get("do") == "malformed at the door":
            raise BadMessage(sender, "malformed")
        return None

    async def handle(self, sender, message):
        self.handled += 1
        do = message.header.get("do")
        if do == "raise":
            raise KeyError("scripted")
        if do == "malformed":
            raise BadMessage(sender, "malformed")
        if do == "blame another":
            raise BadMessage("somebody else", "malformed")
        if do == "wait":
            await asyncio.sleep(message.header["seconds"])
        if do == "hang":
            self.hanging += 1
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return Message({"sender": sender, **message.header}, message.arrays)


@pytest.fixture
def make_service() -> type[ScriptedService]:
    return ScriptedService


@pytest.fixture
def make_calls(runner, nodes):
    """``make_calls(protocol, **settings)`` on a node of the session."""
    made = []

    async def make(protocol, **settings):
        node = await nodes.take()
        defaults = {"heartbeat_s": HEARTBEAT_S, "max_message_bytes": 1 << 24}
        made.append((HivemindCalls(node, protocol, **{**defaults, **settings}), node))
        return made[-1][0]

    yield make

    async def close():
        for calls, node in made:
            await calls.close()
            nodes.free.append(node)

    runner.run(close())
