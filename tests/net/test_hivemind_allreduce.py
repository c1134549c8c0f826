"""``HivemindAllReduce`` beyond the contract: faults in mid-round, who may take part."""

import asyncio
import time

import numpy as np
import pytest

from swarm_jax.core.bans import Bans
from swarm_jax.errors import AllReduceVoid, PeerLost
from swarm_jax.net.hivemind_allreduce import _digest
from swarm_jax.net.protocols import Message

LARGE_VALUES = 8 * 1024 * 1024


async def trio(swarm):
    peers = [await swarm.peer() for _ in range(3)]
    return peers, [peer.peer_id for peer in peers]


def start(peers, group, names, size, *, timeout_s=30.0):
    """Each peer's ``average`` as a task."""
    return [
        asyncio.ensure_future(
            peer.allreduce.average(
                group, names, [np.full(size, i, np.float32)], timeout_s=timeout_s
            )
        )
        for i, peer in enumerate(peers)
    ]


def some_part_is_done(peer, group) -> bool:
    round_ = peer.allreduce._rounds.get(group)
    return round_ is not None and any(
        mean.done() for mean in round_.runner.tensor_part_reducer._means
    )


async def voids_of(tasks) -> list[AllReduceVoid]:
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [AllReduceVoid] * len(tasks)
    return results


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_member_lost_in_mid_round_makes_it_void(swarm_of_hivemind, until, how):
    peers, names = await trio(swarm_of_hivemind)
    tasks = start(peers, "lost", names, LARGE_VALUES)
    await until(lambda: some_part_is_done(peers[0], "lost"))
    getattr(peers[2], how)()
    started_s = time.monotonic()
    for void in await voids_of(tasks[:2]):
        assert void.missing == (names[2],)
    assert time.monotonic() - started_s < 15
    tasks[2].cancel()
    await asyncio.wait([tasks[2]])
    # The others go on without it.
    results = await asyncio.gather(*start(peers[:2], "on", names[:2], 1000))
    for [mean] in results:
        np.testing.assert_array_equal(mean, np.full(1000, 0.5, np.float32))


async def test_a_member_that_is_cancelled_makes_the_round_void(
    swarm_of_hivemind, until
):
    peers, names = await trio(swarm_of_hivemind)
    tasks = start(peers, "cancelled", names, LARGE_VALUES)
    await until(lambda: some_part_is_done(peers[0], "cancelled"))
    tasks[2].cancel()
    for void in await voids_of(tasks[:2]):
        assert void.missing == (names[2],)
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]
    assert all(not peer.allreduce._rounds for peer in peers)


async def test_who_comes_after_the_end_is_refused_at_once(swarm_of_hivemind):
    peers, names = await trio(swarm_of_hivemind)
    await voids_of(start(peers[:2], "late", names, 1000, timeout_s=0.5))
    started_s = time.monotonic()
    [void] = await voids_of(start(peers[2:], "late", names, 1000))
    assert void.missing == (names[2],)
    assert "incomplete after 0.5 s" in void.reason
    assert time.monotonic() - started_s < 10


@pytest.mark.parametrize("shapes", [[(3, 2)], [(2, 3), (0,)], [(2, 3), ()], [(7,)]])
async def test_members_with_other_shapes_are_told_at_once(swarm_of_hivemind, shapes):
    peers = [await swarm_of_hivemind.peer() for _ in range(2)]
    names = [peer.peer_id for peer in peers]
    started_s = time.monotonic()
    voids = await asyncio.gather(
        *(
            peer.allreduce.average(
                "shapes",
                names,
                [np.zeros(shape, np.float32) for shape in mine],
                timeout_s=60,
            )
            for peer, mine in zip(peers, ([(2, 3)], shapes), strict=True)
        ),
        return_exceptions=True,
    )
    assert time.monotonic() - started_s < 20
    assert all("other members or shapes" in void.reason for void in voids)


async def test_strangers_cannot_contribute(swarm_of_hivemind):
    peers, names = await trio(swarm_of_hivemind)
    [waiting] = start(peers[:1], "strangers", names[:2], 100)
    shapes = [np.zeros(100, np.float32)]
    header = {"group": "strangers", "digest": _digest(sorted(names[:2]), shapes)}
    part = Message({**header, "part": 0}, [np.full(64, 7, np.float32)])
    answer = await peers[2].allreduce._calls.call(names[0], part, timeout_s=10)
    assert answer.header["void"] == [names[0]]
    [partner] = start(peers[1:2], "strangers", names[:2], 100)
    for [mean] in await asyncio.gather(waiting, partner):
        np.testing.assert_array_equal(mean, np.zeros(100, np.float32))


async def test_malformed_parts_drop_their_sender(swarm_of_hivemind, until):
    peers, names = await trio(swarm_of_hivemind)
    [waiting] = start(peers[:1], "malformed", names[:2], 100)
    await until(lambda: peers[0].allreduce._rounds)
    node = peers[0].allreduce._node
    digest = _digest(sorted(names[:2]), [np.zeros(100, np.float32)])
    good = {"group": "malformed", "digest": digest, "part": 0}
    part = np.zeros(64, np.float32)
    for header, arrays in (
        ({}, [part]),
        ({**good, "group": 1}, [part]),
        ({**good, "digest": "text"}, [part]),
        ({**good, "part": True}, [part]),
        ({**good, "part": 1}, [part]),
        ({**good, "part": -1}, [part]),
        (good, []),
        (good, [part, part]),
        (good, [part[:63]]),
        (good, [part.reshape(1, 64)]),
        (good, [part.astype(np.float64)]),
    ):
        node.bans = Bans()
        with pytest.raises(PeerLost):
            await peers[1].allreduce._calls.call(
                names[0], Message(header, arrays), timeout_s=10
            )
        assert node.banned_for_s(names[1])
    node.bans = Bans()
    [partner] = start(peers[1:2], "malformed", names[:2], 100)
    assert all(await asyncio.gather(waiting, partner))


async def test_a_part_that_comes_twice_drops_its_sender(swarm_of_hivemind, until):
    peers, names = await trio(swarm_of_hivemind)
    [waiting] = start(peers[:1], "twice", names, 1000)
    await until(lambda: peers[0].allreduce._rounds)
    digest = _digest(sorted(names), [np.zeros(1000, np.float32)])
    part = Message(
        {"group": "twice", "digest": digest, "part": 0},
        [np.zeros(336, np.float32)],
    )
    calls = [
        asyncio.ensure_future(
            peers[1].allreduce._calls.call(names[0], part, timeout_s=10)
        )
        for _ in range(2)
    ]
    for call in calls:
        with pytest.raises(PeerLost):
            await call
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_what_a_caller_may_not_ask(swarm_of_hivemind):
    peer, other = [await swarm_of_hivemind.peer() for _ in range(2)]
    one, two = peer.peer_id, other.peer_id
    arrays = [np.zeros(3, np.float32)]
    for members, values, complaint in (
        ([two], arrays, "must name this peer"),
        ([], arrays, "must name this peer"),
        ([one, two, two], arrays, "nobody twice"),
        ([one, two], [np.zeros(3)], "not float64"),
    ):
        with pytest.raises(ValueError, match=complaint):
            await peer.allreduce.average("wrong", members, values, timeout_s=5)
    await voids_of(start([peer], "once", [one, two], 10, timeout_s=0.1))
    with pytest.raises(ValueError, match="was used before"):
        await peer.allreduce.average("once", [one, two], arrays, timeout_s=5)


async def test_a_part_waits_no_longer_than_allowed(nodes, swarm_of_hivemind):
    peer, other = [await swarm_of_hivemind.peer() for _ in range(2)]
    other.allreduce._join_timeout_s = 0.2
    names = [peer.peer_id, other.peer_id]
    [void] = await voids_of(start([peer], "bounded", names, 10))
    assert void.missing == (other.peer_id,)
    assert "did not join within 0.2 s" in void.reason
