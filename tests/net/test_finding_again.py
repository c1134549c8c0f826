"""Peers that were frozen, cut off or restarted find each other again in the DHT."""

import os
import signal

import pytest
from hivemind.utils import get_dht_time

from swarm_jax.net.hivemind_node import start_node

SILENCE_S = 0.3
TOUCH_EVERY_S = 0.2


async def start(**settings):
    return await start_node(
        silence_s=SILENCE_S, touch_every_s=TOUCH_EVERY_S, **settings
    )


def knows(node, *others) -> bool:
    table = node.dht.protocol.routing_table
    return all(other.p2p.peer_id in table for other in others)


async def all_know_all(until, nodes) -> None:
    await until(lambda: all(knows(a, b) for a in nodes for b in nodes if a is not b))


@pytest.mark.parametrize("frozen", [0, 2], ids=["bootstrap", "other"])
async def test_a_peer_that_was_frozen_finds_the_others_and_is_found(until, frozen):
    bootstrap = await start()
    maddrs = bootstrap.visible_maddrs()
    nodes = [bootstrap, *[await start(initial_peers=maddrs) for _ in range(2)]]
    await all_know_all(until, nodes)
    sleeper = nodes[frozen]
    awake = [node for node in nodes if node is not sleeper]
    os.kill(sleeper.daemon_pid, signal.SIGSTOP)
    try:
        while any(knows(node, sleeper) for node in awake) or any(
            knows(sleeper, node) for node in awake
        ):
            for node in nodes:
                await node.dht.get("anything", latest=True)
    finally:
        os.kill(sleeper.daemon_pid, signal.SIGCONT)
    await all_know_all(until, nodes)
    await sleeper.dht.store("key", 1, get_dht_time() + 60, subkey="sleeper")
    for node in awake:
        found = await node.dht.get("key", latest=True)
        assert found.value["sleeper"].value == 1
    for node in reversed(nodes):
        await node.close()


async def test_a_bootstrap_that_starts_again_is_found_by_those_who_stayed(
    until, tmp_path
):
    """After 5 s: libp2p does not dial sooner an address that has refused it."""
    identity = tmp_path / "identity"
    bootstrap = await start(identity_path=identity)
    maddrs = bootstrap.visible_maddrs()
    stayed = await start(initial_peers=maddrs)
    await bootstrap.close()
    while knows(stayed, bootstrap):
        await stayed.dht.get("anything", latest=True)
    address = maddrs[0].split("/p2p/")[0]
    again = await start(identity_path=identity, host_maddrs=[address])
    newcomer = await start(initial_peers=again.visible_maddrs())
    await all_know_all(until, [again, stayed])
    await stayed.dht.store("key", 1, get_dht_time() + 60, subkey="stayed")
    assert (await newcomer.dht.get("key", latest=True)).value["stayed"].value == 1
    for node in (newcomer, stayed, again):
        await node.close()


async def test_who_answers_is_no_longer_blacklisted(until):
    first = await start()
    second = await start(initial_peers=first.visible_maddrs())
    for _ in range(9):
        first.dht.blacklist.register_failure(second.p2p.peer_id)
        first.dht.blacklist.banned_peers.clear()
    first.dht.blacklist.register_failure(second.p2p.peer_id)
    assert second.p2p.peer_id in first.dht.blacklist
    await until(lambda: second.p2p.peer_id not in first.dht.blacklist)
    for node in (second, first):
        await node.close()
