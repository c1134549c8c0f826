"""Who is asked again, and for how long."""

from types import SimpleNamespace

import pytest
from hivemind.p2p import PeerID

from swarm_jax.net import hivemind_contacts
from swarm_jax.net.hivemind_contacts import ASKED_PER_TURN, Contacts

INITIAL = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
OTHERS = [PeerID(bytes([0x12, 0x20, *[number] * 32])) for number in range(1, 11)]


class Table:
    """Peers that the DHT knows."""

    def __init__(self):
        self.peer_id_to_uid = dict.fromkeys(OTHERS)

    def __contains__(self, peer: PeerID) -> bool:
        return peer in self.peer_id_to_uid


@pytest.fixture
def table():
    return Table()


@pytest.fixture
def contacts(table):
    return Contacts(
        SimpleNamespace(peer_id=None),
        SimpleNamespace(protocol=SimpleNamespace(routing_table=table), blacklist=()),
        maddrs=[],
        initial_peers=[f"/ip4/203.0.113.7/tcp/31330/p2p/{INITIAL}"],
        silence_s=1.0,
        every_s=1.0,
    )


async def test_all_that_are_forgotten_have_their_turn_and_initial_peers_have_each(
    contacts, table
):
    contacts._look_at_table()
    table.peer_id_to_uid.clear()
    turns = [list(contacts._forgotten(turn)) for turn in range(3)]
    assert all(turn[0].to_base58() == INITIAL for turn in turns)
    assert {len(turn) for turn in turns} == {1 + ASKED_PER_TURN}
    assert {peer for turn in turns for peer in turn} >= set(OTHERS)


async def test_who_is_in_the_table_is_not_asked(contacts, table):
    contacts._look_at_table()
    del table.peer_id_to_uid[OTHERS[3]]
    assert OTHERS[3] in contacts._forgotten(0)
    assert len(list(contacts._forgotten(0))) == 2


async def test_who_was_not_seen_for_long_is_let_go(contacts, table, monkeypatch):
    contacts._look_at_table()
    table.peer_id_to_uid.clear()
    monkeypatch.setattr(hivemind_contacts, "REMEMBERED_S", -1.0)
    contacts._look_at_table()
    assert [peer.to_base58() for peer in contacts._forgotten(0)] == [INITIAL]
