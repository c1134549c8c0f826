"""The proxy spoils what it is told to spoil, and nothing of libp2p passes beside it."""

import asyncio
import contextlib
import gc
import socket
import time

import psutil
import pytest

from swarm_jax.launcher.links import LOOPBACK, RESET, Proxy
from swarm_jax.net.hivemind_calls import HivemindCalls
from swarm_jax.net.hivemind_node import start_node
from swarm_jax.net.protocols import Message


@pytest.fixture
def proxy():
    with Proxy() as proxy:
        yield proxy


def port_in(maddr):
    return int(maddr.split("/")[4])


@pytest.fixture
def line(proxy):
    """(client, server): the two ends of a connection to the peer "b"."""
    _, host, _, announced = proxy.options("b")
    with (
        socket.create_server((LOOPBACK, port_in(host))) as listener,
        socket.create_connection((LOOPBACK, port_in(announced)), 10) as client,
    ):
        server, _ = listener.accept()
        with server:
            server.settimeout(10)
            client.sendall(b"hello")
            assert server.recv(99) == b"hello"
            yield client, server


def test_nobody_who_asks_for_any_port_gets_that_of_a_peer(proxy):
    """Of two test processes, one took the other's before its daemon listened there."""
    ports = [port_in(proxy.options(str(peer))[1]) for peer in range(20)]
    assert len(set(ports)) == len(ports)
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        assert max(ports) < 32_768 <= other.getsockname()[1]


def is_closed(end):
    """Whether what arrives has an end."""
    end.settimeout(10)
    try:
        while end.recv(1 << 20):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_its_end_closes_a_connection_that_it_has_just_accepted():
    """Else a warning, which fails whichever test runs when Python finds the socket."""
    with contextlib.ExitStack() as ends:
        with Proxy() as proxy:
            _, host, _, announced = proxy.options("b")
            ends.enter_context(socket.create_server((LOOPBACK, port_in(host))))
            # It is told to stop in the turn of its loop in which it accepts.
            proxy._loop.call_soon_threadsafe(time.sleep, 0.2)
            client = socket.create_connection((LOOPBACK, port_in(announced)), 10)
            ends.enter_context(client)
        assert is_closed(client)


def test_who_is_gone_before_it_is_accepted_does_no_harm(proxy, caplog):
    _, host, _, announced = proxy.options("b")
    with socket.create_server((LOOPBACK, port_in(host))):
        proxy._loop.call_soon_threadsafe(time.sleep, 0.2)
        client = socket.create_connection((LOOPBACK, port_in(announced)), 10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        time.sleep(0.5)
    gc.collect()
    assert caplog.messages == []


def test_its_end_waits_for_nobody_who_does_not_read():
    with contextlib.ExitStack() as ends:
        with Proxy() as proxy:
            _, host, _, announced = proxy.options("b")
            listener = socket.create_server((LOOPBACK, port_in(host)))
            ends.enter_context(listener)
            client = socket.create_connection((LOOPBACK, port_in(announced)), 10)
            ends.enter_context(client)
            server, _ = listener.accept()
            ends.enter_context(server).settimeout(0.5)
            with pytest.raises(TimeoutError):
                while True:
                    server.send(bytes(1 << 20))
        assert is_closed(client)


def test_it_carries_both_ways_and_counts(proxy, line):
    client, server = line
    client.sendall(b"there")
    assert server.recv(99) == b"there"
    server.sendall(b"back again")
    assert client.recv(99) == b"back again"
    assert proxy.carried_bytes["b"] == len("hellothereback again")
    client.close()
    assert server.recv(99) == b""


def test_a_slow_line_takes_its_time(proxy, line):
    client, server = line
    proxy.set_line("b", delay_s=0.1)
    started_s = time.monotonic()
    client.sendall(b"there")
    assert server.recv(99) == b"there"
    assert time.monotonic() - started_s >= 0.1


def test_what_is_held_arrives_later(proxy, line):
    client, server = line
    proxy.set_line("b", held=True)
    client.sendall(b"late")
    server.settimeout(0.1)
    with pytest.raises(TimeoutError):
        server.recv(99)
    proxy.set_line("b")
    server.settimeout(10)
    assert server.recv(99) == b"late"


def test_what_is_swallowed_never_arrives(proxy, line):
    client, server = line
    proxy.set_line("b", swallowed=True)
    client.sendall(b"lost")
    while proxy.swallowed_bytes < len("lost"):
        time.sleep(0.001)
    proxy.set_line("b")
    client.sendall(b"there")
    assert server.recv(99) == b"there"


def test_a_cut_comes_after_so_many_bytes(proxy, line):
    client, server = line
    proxy.spoil("cut", "b", after_bytes=10)
    client.sendall(b"123456789")
    assert server.recv(99) == b"123456789"
    assert not proxy.is_spoilt("b")
    client.sendall(b"0")
    with pytest.raises(ConnectionResetError):
        client.recv(99)
    assert proxy.is_spoilt("b")


def test_an_end_that_is_reset_closes_the_other(line):
    client, server = line
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    server.close()
    assert client.recv(99) == b""


def test_a_half_closed_peer_still_hears(proxy, line):
    client, server = line
    proxy.spoil("half_close", "b")
    assert client.recv(99) == b""
    client.sendall(b"there")
    assert server.recv(99) == b"there"
    server.sendall(b"into the void")


class Echo:
    def admit(self, sender, header, specs):
        return None

    async def handle(self, sender, message):
        return message


def tcp_pairs(node):
    process = psutil.Process(node.daemon_pid)
    return {
        (c.laddr.port, c.raddr.port)
        for c in process.net_connections("tcp")
        if c.status == psutil.CONN_ESTABLISHED
    }


def test_peers_reach_each_other_only_through_it(proxy):
    """Each calls each other one, and no two daemons are connected directly."""

    async def main():
        nodes, calls = [], []
        for name in "abc":
            _, host, _, announced = proxy.options(name)
            known = nodes[0].visible_maddrs() if nodes else []
            nodes.append(
                await start_node(
                    initial_peers=known,
                    host_maddrs=[host],
                    announce_maddrs=[announced],
                )
            )
            calls.append(
                HivemindCalls(nodes[-1], "x", heartbeat_s=1, max_message_bytes=1000)
            )
            await calls[-1].serve(Echo())
        for one in calls:
            for other in calls:
                if one is not other:
                    await one.call(other.peer_id, Message({}), timeout_s=30)
        pairs = set().union(*map(tcp_pairs, nodes))
        for each in (*calls, *nodes):
            await each.close()
        return pairs

    pairs = asyncio.run(main())
    assert len(pairs) >= 6
    assert [pair for pair in pairs if pair[::-1] in pairs] == []
    assert proxy.carried_bytes.keys() == {"a", "b", "c"}


def test_a_shaped_line_has_its_round_trip_and_its_rate(proxy, line):
    """Not slower than the shape by more than a loaded machine may be: it says less."""
    client, server = line
    proxy.set_line("b", bits_per_s=8e6, rtt_s=0.2)
    started_s = time.monotonic()
    client.sendall(b"x")
    assert server.recv(99) == b"x"
    assert time.monotonic() - started_s >= 0.1
    sent = bytes(300_000)
    started_s = time.monotonic()
    client.sendall(sent)
    received = b""
    while len(received) < len(sent):
        received += server.recv(1 << 16)
    assert received == sent
    assert time.monotonic() - started_s >= 0.1 + 0.3
