"""Starting and ending p2pd: what can go wrong is told in seconds, nothing is left."""

import asyncio
import gc
import os
import re
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest
from hivemind.p2p import P2P
from hivemind.proto import p2pd_pb2

from swarm_jax.errors import StartupError
from swarm_jax.net import hivemind_node
from swarm_jax.net.hivemind_node import start_node

STRANGER = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"


def children() -> dict[int, str]:
    """Processes whose parent this one is, zombies too."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, name, rest = re.match(
                r"(\d+) \((.*)\) (.*)", stat.read_text()
            ).groups()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(rest.split()[1]) == os.getpid():
            found[int(pid)] = name
    return found


@pytest.fixture(autouse=True)
def folders(monkeypatch, runner):
    """Socket folders made during a test; it fails when one, or a process, is left."""
    made = []
    mkdtemp = tempfile.mkdtemp

    def recording(**kwargs):
        made.append(Path(mkdtemp(**kwargs)))
        return str(made[-1])

    before = children()
    monkeypatch.setattr(tempfile, "mkdtemp", recording)
    yield made
    assert [folder for folder in made if folder.exists()] == []
    assert {pid: n for pid, n in children().items() if pid not in before} == {}


def port_of(maddr: str) -> int:
    return int(maddr.split("/")[4])


async def fail_to_start(**settings) -> str:
    """The message; the start must fail within seconds."""
    started_s = time.monotonic()
    with pytest.raises(StartupError) as caught:
        await start_node(**settings)
    assert time.monotonic() - started_s < 20
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"initial_peers": ["10.0.0.1:80"]}, "'10.0.0.1:80' is no multiaddress"),
        ({"initial_peers": ["/ip4/10.0.0.1/tcp"]}, "is no multiaddress"),
        ({"initial_peers": ["/ip4/10.0.0.1/tcp/80"]}, "Copy the whole address"),
        ({"initial_peers": ["/ip4/10.0.0.1/tcp/80/p2p/x"]}, "is no multiaddress"),
        ({"initial_peers": ["/ip4/10.0.0.1/udp/80/quic-v1"]}, "no TCP address"),
        ({"host_maddrs": ["anywhere"]}, "--host_maddrs: 'anywhere' is no multiadd"),
        ({"host_maddrs": ["/ip4/203.0.113.9/tcp/0"]}, "/ip4/0.0.0.0/tcp/PORT"),
        ({"announce_maddrs": ["/ip4/10.0.0.1/tcp/0"]}, "Name the port to announce"),
        ({"identity_path": "/no such folder/id"}, "No such file"),
        ({"identity_path": "/tmp"}, "Is a directory"),
    ],
)
async def test_bad_settings_are_told_before_anything_starts(settings, complaint):
    assert complaint in await fail_to_start(**settings)


async def test_an_identity_file_with_something_else_is_told(tmp_path):
    for content in (b"", b"garbage"):
        path = tmp_path / "identity"
        path.write_bytes(content)
        assert "holds no identity" in await fail_to_start(identity_path=path)


async def test_a_port_in_use_is_told():
    node = await start_node()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = [port_of(node.visible_maddrs()[0]), other.getsockname()[1]]
        for port in ports:
            for host in ("127.0.0.1", "0.0.0.0"):
                maddr = f"/ip4/{host}/tcp/{port}"
                message = await fail_to_start(host_maddrs=[maddr])
                assert maddr in message
                assert "The port is in use: take another" in message
    await node.close()


async def test_a_port_is_free_again_after_close():
    node = await start_node()
    port = port_of(node.visible_maddrs()[0])
    await node.close()
    again = await start_node(host_maddrs=[f"/ip4/127.0.0.1/tcp/{port}"])
    assert port_of(again.visible_maddrs()[0]) == port
    await again.close()


async def test_a_bootstrap_that_does_not_answer_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        maddr = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}/p2p/{STRANGER}"
        message = await fail_to_start(initial_peers=[maddr])
    assert f"nobody answers at {maddr}" in message


async def test_a_bootstrap_that_is_mute_is_told():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        maddr = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{STRANGER}"
        message = await fail_to_start(initial_peers=[maddr], startup_timeout_s=1)
    assert "accepts connections, but not as that peer" in message


async def test_a_bootstrap_with_another_id_is_told():
    node = await start_node()
    maddr = node.visible_maddrs()[0].replace(node.peer_id, STRANGER)
    message = await fail_to_start(initial_peers=[maddr])
    assert "Copy the address again" in message
    await node.close()


async def test_a_bootstrap_without_a_dht_is_told():
    p2p = await P2P.create()
    maddr = str((await p2p.get_visible_maddrs())[0])
    assert "runs no DHT node" in await fail_to_start(initial_peers=[maddr])
    await p2p.shutdown()


async def test_an_identity_fixes_the_peer_id_and_is_used_once(tmp_path):
    path = tmp_path / "identity"
    bootstrap = await start_node()
    maddrs = bootstrap.visible_maddrs()
    node = await start_node(identity_path=path, initial_peers=maddrs)
    message = await fail_to_start(identity_path=path, initial_peers=maddrs)
    assert f"a running peer has the identity of {path}" in message
    await node.close()
    again = await start_node(identity_path=str(path))
    assert again.peer_id == node.peer_id
    await again.close()
    await bootstrap.close()


async def test_a_node_is_one_process_and_leaves_nothing(folders):
    before = children()
    node = await start_node()
    new = {pid: name for pid, name in children().items() if pid not in before}
    assert new == {node.daemon_pid: "p2pd"}
    assert [path.name for path in folders[0].glob("owner")] == ["owner"]
    [maddr] = node.visible_maddrs()
    assert maddr.startswith("/ip4/127.0.0.1/tcp/")
    assert maddr.endswith(f"/p2p/{node.peer_id}")
    await node.close()
    await node.close()
    with pytest.raises(ProcessLookupError):
        os.kill(node.daemon_pid, 0)


async def test_ctrl_c_in_a_terminal_does_not_reach_the_daemon():
    """Its process hands over what it has, for which it needs the network."""
    node = await start_node()
    assert os.getpgid(node.daemon_pid) != os.getpgid(0)
    await node.close()


async def test_others_are_told_the_announced_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    announced = f"/ip4/127.0.0.1/tcp/{port}"
    node = await start_node(
        host_maddrs=["/ip4/0.0.0.0/tcp/0"], announce_maddrs=[announced]
    )
    assert node.visible_maddrs() == [f"{announced}/p2p/{node.peer_id}"]
    await node.close()


async def test_the_death_of_the_daemon_is_noticed():
    node = await start_node()
    dying = asyncio.ensure_future(node.died())
    await asyncio.sleep(0)
    assert not dying.done()
    os.kill(node.daemon_pid, signal.SIGKILL)
    message = await dying
    assert str(node.daemon_pid) in message
    assert "cut off" in message
    await node.close()


async def test_a_frozen_node_holds_up_a_read_no_longer_than_told():
    node = await start_node(silence_s=0.2)
    assert node.dht.protocol.wait_timeout == 0.2
    await node.close()


async def test_what_a_dead_daemon_is_still_told_prints_no_traceback():
    complaints, told = [], p2pd_pb2.PersistentConnectionRequest(callId=bytes(16))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    node = await start_node()
    control = node.p2p._client.control
    os.kill(node.daemon_pid, signal.SIGKILL)
    while not control._write_task.done():
        control._pending_messages.put_nowait(told)
        await asyncio.sleep(0)
    await node.died()
    await node.close()
    del control, node
    gc.collect()
    loop.set_exception_handler(None)
    assert complaints == []


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 0.2])
async def test_a_start_that_is_cancelled_leaves_nothing(after_s):
    starting = asyncio.ensure_future(start_node())
    await asyncio.wait([starting], timeout=after_s)
    starting.cancel()
    await asyncio.wait([starting])
    if not starting.cancelled():
        await starting.result().close()


async def test_a_peer_that_is_too_busy_is_asked_twice(monkeypatch, caplog):
    start, failures = hivemind_node._start, []

    async def busy_at_first(**settings):
        if not failures:
            failures.append(hivemind_node._NotLetIn("accepts, but not as that peer"))
            raise failures[0]
        return await start(**settings)

    monkeypatch.setattr(hivemind_node, "_start", busy_at_first)
    node = await start_node()
    assert failures and "trying again" in caplog.text
    await node.close()
