"""Direct streams between peers of one host: who gets one, and what is left of it."""

import asyncio
import itertools
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from swarm_jax.net import same_host
from swarm_jax.net.protocols import Message
from swarm_jax.net.same_host import (
    SECRET_BYTES,
    Entrance,
    Introduction,
    connect,
    introduce,
    name_of,
)

REPOSITORY = Path(__file__).parents[2]
protocols = map("same_host{}".format, itertools.count())


@pytest.fixture
def entrance(runner):
    """An open entrance, its name, and the peers whose streams it took."""
    taken = []
    name = name_of("me", next(protocols))

    async def take(peer, reader, writer):
        taken.append(peer)
        writer.transport.abort()

    entrance = Entrance(name, take)
    runner.run(entrance.open())
    yield entrance, name, taken
    entrance.close()


async def enter(name, introduction) -> bool:
    streams = await connect(name)
    try:
        return await introduce(streams, introduction)
    finally:
        streams[1].transport.abort()


async def test_who_was_introduced_is_taken_once_and_known(entrance, until):
    entrance, name, taken = entrance
    with entrance.expecting("friend") as introduction:
        assert await enter(name, introduction)
        await until(lambda: taken)
        assert not await enter(name, introduction)
    assert taken == ["friend"]


async def test_nobody_else_is_taken(entrance, caplog):
    entrance, name, taken = entrance
    with entrance.expecting("friend") as introduction:
        assert not await enter(name, Introduction())
        half = Introduction(introduction.answer, introduction.question)
        assert not await enter(name, half)
    assert not await enter(name, introduction)
    assert taken == []
    assert caplog.text.count("Refused a stream of this host") == 3


async def test_a_listener_that_does_not_know_the_answer_is_not_believed(entrance):
    entrance, name, _ = entrance
    with entrance.expecting("friend") as introduction:
        assert not await enter(name, Introduction(question=introduction.question))


async def test_who_says_nothing_is_dropped(entrance, monkeypatch):
    monkeypatch.setattr(same_host, "HANDSHAKE_S", 0.05)
    reader, writer = await connect(entrance[1])
    assert await reader.read() == b""
    writer.transport.abort()


async def test_other_users_are_neither_taken_nor_believed(entrance, monkeypatch):
    entrance, name, taken = entrance
    streams = await connect(name)
    me = same_host.os.getuid()
    monkeypatch.setattr(same_host.os, "getuid", lambda: me + 1)
    assert await connect(name) is None
    with entrance.expecting("friend") as introduction:
        assert not await introduce(streams, introduction)
    streams[1].transport.abort()
    assert taken == []


def test_an_introduction_has_one_size():
    introduction = Introduction()
    assert Introduction.from_bytes(introduction.to_bytes()) == introduction
    with pytest.raises(ValueError):
        Introduction.from_bytes(bytes(2 * SECRET_BYTES - 1))


async def test_nobody_listens_after_the_end(entrance):
    entrance, name, _ = entrance
    entrance.close()
    assert await connect(name) is None


def test_a_killed_process_leaves_no_socket():
    name = name_of("killed", "peer")
    source = (
        "import asyncio, sys\n"
        "from swarm_jax.net.same_host import Entrance\n"
        "async def main():\n"
        f"    await Entrance({name!r}, None).open()\n"
        "    print('open', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        assert name[1:] in Path("/proc/net/unix").read_text()
        process.send_signal(signal.SIGKILL)
    assert name[1:] not in Path("/proc/net/unix").read_text()


async def echo(caller, callee) -> None:
    array = np.arange(1_000_000, dtype=np.int32)
    message = Message({"do": "echo"}, [array])
    answer = await caller.call(callee.peer_id, message, timeout_s=10)
    assert answer.header["sender"] == caller.peer_id
    np.testing.assert_array_equal(answer.arrays[0], array)


def addresses(calls) -> set[str]:
    """Of the sockets over which a peer is called."""
    links = [link for some in calls._callees.values() for link in some]
    sockets = [link._transport.get_extra_info("socket") for link in links]
    return {sock.getsockname() for sock in sockets}


def own_address(calls) -> bytes:
    return name_of(calls.peer_id, calls._protocol).encode()


async def test_peers_of_one_host_find_each_other(make_calls, make_service):
    protocol = next(protocols)
    caller, callee = await make_calls(protocol), await make_calls(protocol)
    await callee.serve(make_service())
    for _ in range(2):
        await echo(caller, callee)
    assert addresses(callee) == {own_address(callee)}
    assert len(callee._callees[caller.peer_id]) == 2
    assert caller.is_same_host(callee.peer_id)


@pytest.mark.parametrize("who", ["caller", "callee"])
async def test_it_can_be_switched_off(make_calls, make_service, who):
    protocol = next(protocols)
    caller = await make_calls(protocol, same_host=who != "caller")
    callee = await make_calls(protocol, same_host=who != "callee")
    await callee.serve(make_service())
    await echo(caller, callee)
    assert own_address(callee) not in addresses(callee)
    assert not caller.is_same_host(callee.peer_id)


async def test_an_impostor_under_a_peers_name_gets_nothing(make_calls, make_service):
    protocol = next(protocols)
    caller, callee = await make_calls(protocol), await make_calls(protocol)
    heard = []

    async def listen(reader, writer):
        heard.append(await reader.read(1 << 20))
        writer.write(bytes(SECRET_BYTES))

    name = name_of(callee.peer_id, callee._protocol)
    impostor = await asyncio.start_unix_server(listen, name)
    await callee.serve(make_service())
    await echo(caller, callee)
    impostor.close()
    assert not caller.is_same_host(callee.peer_id)
    assert not any(heard)


async def test_who_may_not_call_is_not_introduced(make_calls, make_service):
    protocol = next(protocols)
    stranger = await make_calls(protocol)
    callee = await make_calls(protocol, authorised=lambda peer: False)
    await callee.serve(make_service())
    assert await stranger._same_host.open_stream(callee.peer_id) is None
    assert not callee._same_host._introducing


async def test_introductions_of_one_peer_are_limited(make_calls, make_service, until):
    protocol = next(protocols)
    caller = await make_calls(protocol)
    callee = await make_calls(protocol, max_streams_per_peer=2)
    await callee.serve(make_service())
    opened = [
        await caller._node.open_stream(
            callee.peer_id, callee._same_host._protocol, timeout_s=10
        )
        for _ in range(4)
    ]
    answers = [asyncio.ensure_future(r.read(2 * SECRET_BYTES)) for r, _ in opened]
    await asyncio.wait(answers)
    sizes = sorted(len(answer.result()) for answer in answers)
    assert sizes == [0, 0, 2 * SECRET_BYTES, 2 * SECRET_BYTES]
    for _, writer in opened:
        writer.transport.abort()
    await until(lambda: not callee._same_host._introducing)
    assert not callee._same_host._entrance._expected


async def test_a_lost_stream_is_opened_again(make_calls, make_service, until):
    protocol = next(protocols)
    caller, callee = await make_calls(protocol), await make_calls(protocol)
    await callee.serve(make_service())
    await echo(caller, callee)
    for link in list(callee._callees[caller.peer_id]):
        link.abort()
    await until(lambda: not caller._dials)
    await echo(caller, callee)
    assert addresses(callee) == {own_address(callee)}
