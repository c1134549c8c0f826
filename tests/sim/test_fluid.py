"""The fluid swarm: what it yields, and what it looks like from outside."""

import numpy as np
import pytest

from swarm_jax.core.reports import JOINING, ONLINE
from swarm_jax.roles.peers import PeerRecord
from swarm_jax.sim.fluid import (
    IN_FLIGHT_PER_PEER,
    TOKENS_PER_S,
    FluidSwarm,
    best_allocation,
    queue_lengths,
)

CHANCE = np.random.default_rng(0)


def swarm_of(*serving):
    swarm = FluidSwarm(0, [1.0] * len(serving))
    for stage, peers in enumerate(serving):
        for _ in range(peers):
            swarm.add(stage, serves=stage)
    return swarm


def test_the_best_allocation_is_as_even_as_work_allows():
    assert best_allocation(10, (1.0, 1.0, 1.0)) == (4, 3, 3)
    assert best_allocation(8, (2.0, 1.0, 1.0)) == (4, 2, 2)


def test_the_swarm_is_as_fast_as_its_slowest_stage():
    assert swarm_of(3, 2, 5).throughput() == 2 * TOKENS_PER_S
    assert swarm_of(3, 2, 5).optimal() == 3 * TOKENS_PER_S
    assert swarm_of(3, 0).throughput() == 0


def test_who_moves_or_starts_is_no_part_of_the_throughput():
    swarm = swarm_of(2, 3)
    swarm.add(0, serves=None)
    mover = swarm.peers[swarm.started()[1][0]]
    mover.stage, mover.serves = 0, None
    assert swarm.throughput() == 2 * TOKENS_PER_S
    assert swarm.serving() == [2, 2]
    assert swarm.optimal() == 2 * TOKENS_PER_S
    assert swarm.downloads(0) == 2


def test_who_was_taken_away_is_still_in_the_directory_but_does_nothing():
    swarm = swarm_of(2, 2)
    gone = swarm.started()[0][0]
    swarm.peers[gone].gone = True
    assert swarm.throughput() == TOKENS_PER_S
    assert swarm.records(0.0, CHANCE)[0][gone].state == ONLINE


def test_the_slowest_stage_holds_nearly_all_microbatches():
    held = queue_lengths([10.0, 12.0, 20.0], 168)
    assert held[0] > 150 and held[0] > held[1] > held[2] >= 1
    assert sum(held) == pytest.approx(168, abs=1)
    assert queue_lengths([5.0, 5.0], 40) == [20, 20]
    assert queue_lengths([0.0, 5.0], 20) == [0, 0]


def test_records_are_those_of_the_directory():
    swarm = swarm_of(2, 3)
    newcomer = swarm.add(1, serves=None)
    records = swarm.records(0.0, CHANCE)
    assert all(isinstance(r, PeerRecord) for peers in records for r in peers.values())
    assert records[1][newcomer].state == JOINING
    assert records[1][newcomer].tokens_per_s == 0
    held = sum(record.queue for peers in records for record in peers.values())
    assert held == pytest.approx(5 * IN_FLIGHT_PER_PEER, abs=1)


def test_measured_throughput_may_be_wrong():
    records = swarm_of(50, 50).records(0.1, CHANCE)
    rates = [r.tokens_per_s for peers in records for r in peers.values()]
    assert np.std(rates) == pytest.approx(0.1 * TOKENS_PER_S, rel=0.3)
