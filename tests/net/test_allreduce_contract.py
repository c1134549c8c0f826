"""What ``AllReduce`` promises, of all adapters."""

import asyncio
import time

import numpy as np
import pytest

from swarm_jax.errors import AllReduceVoid

pytestmark = pytest.mark.parametrize(
    "swarm", ["local", "hivemind", "same_host"], indirect=True
)

SHAPES = {
    "one array": [(1000,)],
    "many shapes": [(3, 5), (), (0, 4), (7,), (2, 3, 4), (0,)],
    "fewer values than members": [(1,)],
    "one value over a part": [(128 * 1024 * 2 + 1,)],
    "only empty arrays": [(0,), (3, 0)],
    "nothing": [],
}


def make_arrays(seed, shapes):
    generator = np.random.default_rng(seed)
    return [
        np.asarray(generator.standard_normal(shape), np.float32) for shape in shapes
    ]


async def average_all(peers, group, arrays, *, timeout_s=20.0):
    """All members' results, exceptions among them."""
    names = [peer.peer_id for peer in peers]
    return await asyncio.gather(
        *(
            peer.allreduce.average(
                group, names[i:] + names[:i], arrays[i], timeout_s=timeout_s
            )
            for i, peer in enumerate(peers)
        ),
        return_exceptions=True,
    )


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
async def test_all_members_get_the_same_mean(swarm, shapes):
    peers = [await swarm.peer() for _ in range(3)]
    arrays = [make_arrays(seed, shapes) for seed in range(3)]
    before = [[array.tobytes() for array in some] for some in arrays]
    results = await average_all(peers, "same", arrays)
    assert [[array.tobytes() for array in some] for some in arrays] == before
    for result in results:
        assert [array.shape for array in result] == shapes
        assert all(array.dtype == np.float32 for array in result)
        for array, first in zip(result, results[0], strict=True):
            assert array.tobytes() == first.tobytes()
        for array, *columns in zip(result, *arrays, strict=True):
            mean = np.mean(np.asarray(columns, np.float64), axis=0)
            np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-6)


async def test_the_same_inputs_give_the_same_bytes_again(swarm):
    peers = [await swarm.peer() for _ in range(3)]
    arrays = [make_arrays(seed, [(300_000,)]) for seed in range(3)]
    results = [await average_all(peers, f"again {i}", arrays) for i in range(2)]
    assert results[0][0][0].tobytes() == results[1][0][0].tobytes()


async def test_results_belong_to_the_caller(swarm):
    peers = [await swarm.peer() for _ in range(2)]
    arrays = [make_arrays(seed, [(4,), (0,)]) for seed in range(2)]
    for group, members in (("pair", peers), ("alone", peers[:1])):
        results = await average_all(members, group, arrays)
        expected = np.array(results[-1][0])
        results[0][0][:] = 0
        if len(members) > 1:
            np.testing.assert_array_equal(results[-1][0], expected)
        else:
            assert arrays[0][0].any()


async def test_a_group_of_one_needs_nobody(swarm):
    peer = await swarm.peer()
    arrays = make_arrays(0, [(5,), ()])
    [result] = await average_all([peer], "one", [arrays])
    for array, original in zip(result, arrays, strict=True):
        assert array.tobytes() == original.tobytes()
        assert array.shape == original.shape
        assert not np.shares_memory(array, original)


async def test_members_may_come_late(swarm, until):
    early, late = await swarm.peer(), await swarm.peer()
    names = [early.peer_id, late.peer_id]
    arrays = [make_arrays(seed, [(300_000,)]) for seed in range(2)]
    waiting = asyncio.ensure_future(
        early.allreduce.average("late", names, arrays[0], timeout_s=20)
    )
    # Longer than a member that hangs would be given.
    await asyncio.wait({waiting}, timeout=4 * swarm.heartbeat_s)
    assert not waiting.done()
    result = await late.allreduce.average("late", names, arrays[1], timeout_s=20)
    assert result[0].tobytes() == (await waiting)[0].tobytes()


async def test_rounds_may_run_side_by_side(swarm):
    peers = [await swarm.peer() for _ in range(2)]
    arrays = [make_arrays(seed, [(1000,)]) for seed in range(2)]
    rounds = await asyncio.gather(
        *(average_all(peers, f"side {number}", arrays) for number in range(4))
    )
    assert len({round_[i][0].tobytes() for round_ in rounds for i in range(2)}) == 1


async def test_a_dead_member_makes_the_round_void_soon(swarm):
    peers = [await swarm.peer() for _ in range(3)]
    arrays = [make_arrays(seed, [(1000,)]) for seed in range(3)]
    names = [peer.peer_id for peer in peers]
    peers[2].kill()
    started_s = time.monotonic()
    voids = await asyncio.gather(
        *(
            peer.allreduce.average("dead", names, arrays[0], timeout_s=60)
            for peer in peers[:2]
        ),
        return_exceptions=True,
    )
    assert time.monotonic() - started_s < 20
    for void in voids:
        assert isinstance(void, AllReduceVoid)
        assert void.missing == (names[2],)
    results = await average_all(peers[:2], "without the dead", arrays)
    assert results[0][0].tobytes() == results[1][0].tobytes()


async def test_a_member_that_never_comes_makes_the_round_void(swarm):
    peers = [await swarm.peer() for _ in range(3)]
    arrays = [make_arrays(seed, [(1000,)]) for seed in range(3)]
    names = [peer.peer_id for peer in peers]
    voids = await asyncio.gather(
        *(
            peer.allreduce.average("never", names, arrays[0], timeout_s=0.5)
            for peer in peers[:2]
        ),
        return_exceptions=True,
    )
    for void in voids:
        assert isinstance(void, AllReduceVoid)
        assert void.missing == (names[2],)


async def test_members_that_disagree_get_nothing(swarm):
    peers = [await swarm.peer() for _ in range(3)]
    arrays = make_arrays(0, [(1000,)])
    names = [peer.peer_id for peer in peers]
    voids = await asyncio.gather(
        peers[0].allreduce.average("disagree", names[:2], arrays, timeout_s=1),
        peers[1].allreduce.average("disagree", names, arrays, timeout_s=1),
        return_exceptions=True,
    )
    assert [type(void) for void in voids] == [AllReduceVoid, AllReduceVoid]
