"""``HivemindDirectory`` beyond the contract: expiry, and records that are not ours."""


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
    assert await dht.store("numbered", 5, expires_at_s, subkey=1)
    assert await writer.directory.store("numbered", "me", 6, expires_in_s=60)
    assert set(await reader.directory.get("numbered")) == {"me"}
