"""``HivemindDirectory`` beyond the contract: expiry, and records that are not ours."""

import asyncio

from hivemind.dht.routing import DHTID

from swarm_jax.net import hivemind_records
from swarm_jax.net.hivemind_records import MAX_LIFE_S, MAX_VALUE_BYTES


async def test_a_record_can_be_replaced_by_one_with_a_shorter_life(swarm_of_hivemind):
    writer, reader = [await swarm_of_hivemind.peer() for _ in range(2)]
    for number, life_s in enumerate((60, 5, 30, 5)):
        stored = await writer.directory.store(
            "shorter", "me", number, expires_in_s=life_s
        )
        assert stored
        assert (await reader.directory.get("shorter"))["me"].value == number


async def test_records_of_another_kind_are_passed_over(swarm_of_hivemind, nodes):
    writer, reader = [await swarm_of_hivemind.peer() for _ in range(2)]
    dht = nodes.all[0].dht
    expires_at_s = writer.directory.now_s() + 60
    assert await dht.store("plain", 5, expires_at_s)
    assert await reader.directory.get("plain") == {}
    assert await dht.store("a dictionary", {"me": 5}, expires_at_s)
    assert await reader.directory.get("a dictionary") == {}
    assert not await dht.store("numbered", 5, expires_at_s, subkey=1)
    assert await writer.directory.store("numbered", "me", 6, expires_in_s=60)
    assert set(await reader.directory.get("numbered")) == {"me"}


async def test_garbage_in_the_storage_of_another_node_holds_nobody_up(
    swarm_of_hivemind, nodes
):
    hostile, reader = [await swarm_of_hivemind.peer() for _ in range(2)]
    # As nothing checks it there, hivemind's ``get`` would wait for ever here.
    storage = hostile.directory._node.dht.protocol.storage
    for key, value in {"garbage": b"\xc1", "extension": b"\xc7\x01\x50\x01"}.items():
        key_id = DHTID.generate(key)
        expires_at_s = hostile.directory.now_s() + 60
        assert storage.store(key_id, value, expires_at_s)
        assert storage.store(DHTID.generate(key * 2), value, expires_at_s, subkey="me")
        async with asyncio.timeout(20):
            assert await reader.directory.get(key) == {}
            assert await reader.directory.get(key * 2) == {}


async def test_what_a_node_keeps_for_others_is_bounded(swarm_of_hivemind, monkeypatch):
    writer, keeper = [await swarm_of_hivemind.peer() for _ in range(2)]
    monkeypatch.setattr(hivemind_records, "MAX_SUBKEYS", 3)
    for number in range(5):
        stored = await writer.directory.store(
            "many", f"peer{number}", number, expires_in_s=60
        )
        assert stored == (number < 3)
    assert await writer.directory.store("many", "peer0", 7, expires_in_s=60)
    assert len(await keeper.directory.get("many")) == 3
    for value, life_s in ((b"x" * MAX_VALUE_BYTES, 60), (1, 2 * MAX_LIFE_S)):
        assert not await writer.directory.store("it", "me", value, expires_in_s=life_s)
