"""``HivemindCalls`` beyond the contract: who may call, how many streams, dialling."""

import asyncio
import itertools

import pytest

from swarm_jax.core.bans import Bans
from swarm_jax.errors import PeerError, PeerLost
from swarm_jax.net.hivemind_calls import HivemindCalls
from swarm_jax.net.protocols import Message

protocols = map("calls{}".format, itertools.count())


async def test_peers_of_another_swarm_find_no_handler(make_calls, make_service):
    service = make_service()
    caller, callee = await make_calls("swarm one"), await make_calls("swarm two")
    await callee.serve(service)
    with pytest.raises(PeerLost, match="protocol"):
        await caller.call(callee.peer_id, Message({}), timeout_s=10)
    assert service.admitted == []


async def test_peers_off_the_allow_list_are_not_served(
    make_calls, make_service, caplog
):
    service = make_service()
    protocol = next(protocols)
    allowed, stranger = await make_calls(protocol), await make_calls(protocol)
    callee = await make_calls(protocol, authorised=lambda peer: peer == allowed.peer_id)
    await callee.serve(service)
    with pytest.raises(PeerLost):
        await stranger.call(callee.peer_id, Message({}), timeout_s=10)
    assert service.admitted == []
    assert f"Refused a stream of peer {stranger.peer_id}" in caplog.text
    answer = await allowed.call(callee.peer_id, Message({}), timeout_s=10)
    assert answer.header == {"sender": allowed.peer_id}


async def test_a_few_streams_carry_all_calls(make_calls, make_service):
    protocol = next(protocols)
    caller = await make_calls(protocol, streams_per_peer=3)
    callee = await make_calls(protocol)
    await callee.serve(make_service())
    for _ in range(2):
        await asyncio.gather(
            *(caller.call(callee.peer_id, Message({}), timeout_s=10) for _ in range(20))
        )
        assert len(callee._callees[caller.peer_id]) == 3


async def test_lost_streams_are_opened_again(make_calls, make_service, until):
    service = make_service()
    protocol = next(protocols)
    caller, callee = await make_calls(protocol), await make_calls(protocol)
    await callee.serve(service)
    calls = [
        asyncio.ensure_future(
            caller.call(callee.peer_id, Message({"do": "hang"}), timeout_s=30)
        )
        for _ in range(4)
    ]
    await until(lambda: service.hanging == 4)
    for link in list(callee._callees[caller.peer_id]):
        link.abort()
    for call in calls:
        with pytest.raises(PeerLost):
            await call
    assert service.cancelled == 4
    assert not caller._dials
    answer = await caller.call(callee.peer_id, Message({}), timeout_s=10)
    assert answer.header == {"sender": caller.peer_id}


async def test_a_caller_that_gives_up_does_not_break_the_dial(make_calls, make_service):
    protocol = next(protocols)
    caller, callee = await make_calls(protocol), await make_calls(protocol)
    await callee.serve(make_service())
    calls = [
        asyncio.ensure_future(caller.call(callee.peer_id, Message({}), timeout_s=10))
        for _ in range(4)
    ]
    await asyncio.sleep(0)
    calls[0].cancel()
    calls[1].cancel()
    for call in calls[2:]:
        assert (await call).header == {"sender": caller.peer_id}


async def test_closing_ends_a_dial(make_calls):
    caller, callee = await make_calls(next(protocols)), await make_calls("other")
    call = asyncio.ensure_future(caller.call(callee.peer_id, Message({}), timeout_s=30))
    await asyncio.sleep(0)
    await caller.close()
    with pytest.raises(PeerLost):
        await call


async def test_dialling_a_frozen_peer_is_bounded(swarm_of_hivemind, make_service):
    caller, callee = await swarm_of_hivemind.peer(), await swarm_of_hivemind.peer()
    await callee.calls.serve(make_service())
    callee.freeze()
    with pytest.raises(PeerError) as caught:
        await caller.calls.call(callee.peer_id, Message({}), timeout_s=30)
    assert caught.value.peer == callee.peer_id


async def test_a_banned_peer_is_refused_in_all_protocols_until_its_ban_ends(
    make_calls, make_service, nodes
):
    protocol, name = next(protocols), next(protocols)
    caller, callee = await make_calls(protocol), await make_calls(protocol)
    service, other_service = make_service(), make_service()
    caller_2 = HivemindCalls(
        caller._node, name, heartbeat_s=0.3, max_message_bytes=1 << 20
    )
    callee_2 = HivemindCalls(
        callee._node, name, heartbeat_s=0.3, max_message_bytes=1 << 20
    )
    callee._node.bans = Bans(1000.0, 1000.0)
    await callee.serve(service)
    await callee_2.serve(other_service)
    await caller_2.call(callee.peer_id, Message({}), timeout_s=10)
    hanging = asyncio.ensure_future(
        caller_2.call(callee.peer_id, Message({"do": "hang"}), timeout_s=30)
    )
    with pytest.raises(PeerLost):
        await caller.call(callee.peer_id, Message({"do": "malformed"}), timeout_s=10)
    with pytest.raises(PeerLost):
        await hanging
    served = len(service.admitted), len(other_service.admitted)
    for calls in (caller, caller_2):
        with pytest.raises(PeerLost):
            await calls.call(callee.peer_id, Message({}), timeout_s=10)
    assert (len(service.admitted), len(other_service.admitted)) == served
    # Our own calls to it go on.
    await caller.serve(make_service())
    answer = await callee.call(caller.peer_id, Message({}), timeout_s=10)
    assert answer.header == {"sender": callee.peer_id}
    callee._node.bans = Bans()
    await caller.call(callee.peer_id, Message({}), timeout_s=10)
    await caller_2.close()
    await callee_2.close()


async def open_streams(calls, peer: str, count: int) -> list:
    opened = [
        await calls._node.open_stream(peer, calls._protocol, timeout_s=10)
        for _ in range(count)
    ]
    return [writer for _, writer in opened]


def num_streams(callee: HivemindCalls) -> int:
    return sum(len(some) for some in callee._callees.values())


async def test_a_flood_of_streams_of_one_peer_is_refused(
    make_calls, make_service, until
):
    protocol = next(protocols)
    caller = await make_calls(protocol)
    callee = await make_calls(protocol, max_streams_per_peer=3)
    await callee.serve(make_service())
    opened = [
        await caller._node.open_stream(callee.peer_id, caller._protocol, timeout_s=10)
        for _ in range(6)
    ]
    ended = [asyncio.ensure_future(reader.read()) for reader, _ in opened]
    await until(lambda: sum(task.done() for task in ended) == 3)
    assert num_streams(callee) == 3
    for _, writer in opened:
        writer.transport.abort()
    await until(lambda: num_streams(callee) == 0)
    await asyncio.wait(ended)


async def test_streams_that_never_say_anything_are_dropped(
    make_calls, make_service, until
):
    protocol = next(protocols)
    caller = await make_calls(protocol)
    callee = await make_calls(protocol, stall_s=0.1)
    await callee.serve(make_service())
    writers = await open_streams(caller, callee.peer_id, 3)
    await until(lambda: callee._node.banned_for_s(caller.peer_id))
    await until(lambda: num_streams(callee) == 0)
    for writer in writers:
        writer.transport.abort()


async def test_too_many_streams_end_the_one_that_was_idle_for_longest(
    make_calls, make_service, until
):
    protocol = next(protocols)
    first, second, third = [
        await make_calls(protocol, streams_per_peer=1) for _ in range(3)
    ]
    callee = await make_calls(protocol, max_streams=2)
    service = make_service()
    await callee.serve(service)
    for caller in (first, second):
        await caller.call(callee.peer_id, Message({}), timeout_s=10)
    busy = asyncio.ensure_future(
        first.call(callee.peer_id, Message({"do": "hang"}), timeout_s=30)
    )
    await until(lambda: service.hanging)
    await third.call(callee.peer_id, Message({}), timeout_s=10)
    assert set(callee._callees) == {first.peer_id, third.peer_id}
    also_busy = asyncio.ensure_future(
        third.call(callee.peer_id, Message({"do": "hang"}), timeout_s=30)
    )
    await until(lambda: service.hanging == 2)
    with pytest.raises(PeerLost):
        await second.call(callee.peer_id, Message({}), timeout_s=10)
    assert not busy.done() and not also_busy.done()
    busy.cancel()
    also_busy.cancel()
