"""One round, its members joined by function calls: cutting, adding, failing."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from hivemind.p2p import PeerID
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_jax.errors import AllReduceVoid, BadMessage
from swarm_jax.net.hivemind_allreduce import BUDGET_BYTES
from swarm_jax.net.hivemind_butterfly import (
    PART_VALUES,
    ExactReducer,
    ExactRunner,
    cut_like,
    cut_shares,
    parts_in_flight,
)
from swarm_jax.net.parts import PART_CODECS
from swarm_jax.net.wire import MAX_CALLS

PEERS = [PeerID(bytes([0, 1, number])).to_base58() for number in range(60)]

shapes = st.lists(
    st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=4
)


@settings(deadline=None, derandomize=True)
@given(shapes, st.integers(2, 9))
def test_shares_are_equal_and_come_back_as_arrays(shapes, num_peers):
    generator = np.random.default_rng(0)
    arrays = [np.asarray(generator.random(s), np.float32) for s in shapes]
    shares = cut_shares(arrays, num_peers)
    assert len({len(share) for share in shares}) == 1
    back = cut_like(np.concatenate(shares), arrays)
    assert [array.shape for array in back] == list(shapes)
    for array, original in zip(back, arrays, strict=True):
        assert array.tobytes() == original.tobytes()


def make_runners(arrays_of_peers, wire="float32"):
    """Runners of one round that hand their parts to each other directly."""
    codec = PART_CODECS[wire]
    peers = PEERS[: len(arrays_of_peers)]
    runners = {}

    def exchange_of(sender):
        async def exchange(peer, number, part):
            sent = codec.decode(codec.encode(part))
            return await runners[peer].aggregate(sender, number, sent)

        return exchange

    for peer, arrays in zip(peers, arrays_of_peers, strict=True):
        runners[peer] = ExactRunner(
            p2p=SimpleNamespace(peer_id=PeerID.from_base58(peer)),
            group_id="test",
            peers=peers,
            shares=cut_shares(arrays, len(peers)),
            exchange=exchange_of(peer),
            codec=codec,
        )
    return list(runners.values())


async def collect(runner):
    """The mean; hivemind's own result must be the same."""
    shares = [share.numpy() async for share in runner]
    assert np.concatenate(shares).tobytes() == runner.mean.tobytes()
    return runner.mean


@pytest.mark.parametrize("num_peers", [2, 3, 7, 49, 60])
@pytest.mark.parametrize("size", [1, 1000, 3 * PART_VALUES + 5])
async def test_every_peer_averages_a_share(num_peers, size):
    arrays = [[np.full(size, number, np.float32)] for number in range(num_peers)]
    if num_peers * size > 5_000_000:
        arrays = [[some[0][: 5_000_000 // num_peers]] for some in arrays]
    runners = make_runners(arrays)
    for vector in await asyncio.gather(*map(collect, runners)):
        [mean] = cut_like(vector, arrays[0])
        np.testing.assert_array_equal(mean, np.full_like(mean, (num_peers - 1) / 2))


@pytest.mark.parametrize("wire", PART_CODECS)
async def test_all_have_the_same_bytes_whatever_the_wire(wire):
    generator = np.random.default_rng(1)
    arrays = [
        [generator.standard_normal(PART_VALUES + 300).astype(np.float32)]
        for _ in range(3)
    ]
    found = [
        cut_like(vector, arrays[0])[0]
        for vector in await asyncio.gather(*map(collect, make_runners(arrays, wire)))
    ]
    assert len({array.tobytes() for array in found}) == 1
    # Two roundings, each at most 1/254 of a block's largest magnitude.
    bounds = {"float32": 1e-6, "float16": 1e-3 * 4, "int8": 2 * 5 / 254}
    exact = np.mean([some[0] for some in arrays], axis=0)
    assert np.abs(found[0] - exact).max() <= bounds[wire]


@pytest.mark.parametrize("wire", PART_CODECS)
@pytest.mark.parametrize("num_peers", [2, 4, 9, 60])
def test_parts_in_flight_fill_a_long_link_and_fit_into_every_budget(wire, num_peers):
    codec = PART_CODECS[wire]
    parts = parts_in_flight(codec, num_peers)
    sent = sum(array.nbytes for array in codec.encode(np.zeros(PART_VALUES, "f4")))
    if num_peers <= 9:
        assert parts * sent > 0.95 * 16 * 2**20
    assert 8 <= parts <= MAX_CALLS / 2
    assert (num_peers - 1) * parts * sent <= BUDGET_BYTES / 2


async def test_a_sender_that_gives_up_takes_no_mean_from_the_others():
    first, *_ = make_runners([[np.ones(10, np.float32)]] * 3)
    part = np.ones(16, np.float32)
    waiting = [
        asyncio.ensure_future(first.aggregate(peer, 0, part)) for peer in PEERS[:2]
    ]
    await asyncio.sleep(0)
    waiting[0].cancel()
    np.testing.assert_array_equal(await first.aggregate(PEERS[2], 0, part), [part])
    np.testing.assert_array_equal(await waiting[1], [part])


async def test_a_void_round_frees_all_that_wait_for_it():
    first, *_ = make_runners([[np.ones(10, np.float32)]] * 3)
    part = np.ones(16, np.float32)
    waiting = asyncio.ensure_future(first.aggregate(PEERS[1], 0, part))
    await asyncio.sleep(0)
    assert first.lacking() == (PEERS[0], PEERS[2])
    first.fail(AllReduceVoid((PEERS[2],), "first reason"))
    first.fail(AllReduceVoid((PEERS[0],), "second reason"))
    for late in (waiting, first.aggregate(PEERS[2], 0, part)):
        with pytest.raises(AllReduceVoid, match="first reason"):
            await late
    with pytest.raises(BadMessage, match="came twice"):
        await first.aggregate(PEERS[2], 0, part)


async def test_the_sum_does_not_depend_on_the_order_of_arrival():
    values = np.array([1e8, 1.0, -1e8, 1.0], np.float32)
    means = set()
    for order in ([0, 1, 2, 3], [3, 1, 2, 0], [2, 0, 3, 1]):
        reducer = ExactReducer([1], 4, PART_CODECS["float32"])
        for sender in order:
            mean = reducer.add(sender, 0, values[sender : sender + 1])
        [total] = mean.result()
        means.add(total.tobytes())
    assert len(means) == 1


async def test_who_owes_a_mean_is_named(until):
    first, *_ = runners = make_runners([[np.ones(10, np.float32)]] * 3)
    collecting = [asyncio.ensure_future(collect(r)) for r in (first, runners[2])]
    part = np.ones(16, np.float32)
    # The second takes part in the others' shares, but not in its own.
    for runner in (first, runners[2]):
        await runner.aggregate(PEERS[1], 0, part)
    await until(lambda: first.lacking() == (PEERS[1],))
    for task in collecting:
        task.cancel()
    await asyncio.wait(collecting)
