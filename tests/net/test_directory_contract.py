"""What ``Directory`` promises, of both adapters."""

import asyncio


async def get_until(directory, key, subkeys):
    """Reads may lag behind writes: asks until exactly ``subkeys`` are there."""
    while True:
        records = await directory.get(key)
        if set(records) == set(subkeys):
            return records
        await asyncio.sleep(0.01)


async def test_records_are_found_by_other_peers(swarm):
    one, two, reader = [await swarm.peer() for _ in range(3)]
    value = {"stage": 1, "rate": 2.5, "on": True, "none": None, "raw": b"\x00"}
    before_s = reader.directory.now_s()
    assert await one.directory.store("found", "one", value, expires_in_s=20)
    assert await two.directory.store("found", "two", [1, "x"], expires_in_s=30)
    records = await get_until(reader.directory, "found", {"one", "two"})
    assert records["one"].value == value
    assert records["two"].value == [1, "x"]
    for name, life_s in (("one", 20), ("two", 30)):
        left_s = records[name].expires_at_s - before_s
        assert life_s <= left_s < life_s + 10


async def test_an_unknown_key_has_no_records(swarm):
    peer = await swarm.peer()
    assert await peer.directory.get("never stored") == {}


async def test_later_records_replace_earlier_ones(swarm):
    writer, reader = await swarm.peer(), await swarm.peer()
    for number in range(3):
        life_s = 20 + number
        stored = await writer.directory.store(
            "replaced", "me", number, expires_in_s=life_s
        )
        assert stored
        record = await reader.directory.get("replaced")
        assert record["me"].value == number


async def test_keys_are_apart(swarm):
    peer = await swarm.peer()
    assert await peer.directory.store("apart 1", "me", 1, expires_in_s=20)
    assert await peer.directory.store("apart 2", "me", 2, expires_in_s=20)
    assert {k: r.value for k, r in (await peer.directory.get("apart 1")).items()} == {
        "me": 1
    }


async def test_records_expire_one_by_one(swarm):
    writer, reader = await swarm.peer(), await swarm.peer()
    assert await writer.directory.store("expiring", "soon", 1, expires_in_s=0.5)
    assert await writer.directory.store("expiring", "later", 2, expires_in_s=60)
    records = await get_until(reader.directory, "expiring", {"later"})
    assert records["later"].value == 2


async def test_records_outlive_their_peer(swarm):
    writer, reader = await swarm.peer(), await swarm.peer()
    assert await writer.directory.store("outliving", "me", 1, expires_in_s=60)
    await get_until(reader.directory, "outliving", {"me"})
    writer.kill()
    records = await get_until(reader.directory, "outliving", {"me"})
    assert records["me"].value == 1


async def test_peers_can_write_at_once(swarm):
    peers = [await swarm.peer() for _ in range(3)]
    stored = await asyncio.gather(
        *(
            peer.directory.store(
                "at once", f"{peer.peer_id} {number}", number, expires_in_s=30
            )
            for peer in peers
            for number in range(5)
        )
    )
    assert all(stored)
    names = {f"{peer.peer_id} {number}" for peer in peers for number in range(5)}
    for peer in peers:
        await get_until(peer.directory, "at once", names)
