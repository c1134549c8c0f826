"""Traces under strategies: what a move costs, and what it brings."""

import pytest

from swarm_jax.config import RebalancingConfig
from swarm_jax.sim.fluid import TOKENS_PER_S
from swarm_jax.sim.market import Change, SpotMarket
from swarm_jax.sim.replay import Costs, Replay, Sample, Scenario, percent
from swarm_jax.sim.strategies import by_gain, by_queue, where_needed, without

OURS = by_gain(RebalancingConfig())
HOUR = Scenario(market=SpotMarket(hours=1.0, peers=12), num_stages=3)
COSTS = HOUR.costs
LOSSES = [Change(float(at_s), comes=False) for at_s in range(101, 107)]


def replay(strategy, trace=LOSSES, seed=0, scenario=HOUR):
    """Final throughput in peers of the slowest stage, and the replay."""
    done = Replay(scenario, strategy, trace, seed)
    return done.run()[-1].throughput / TOKENS_PER_S, done


def test_nothing_happens_in_a_calm_market():
    for strategy in (without(), by_queue(60.0), OURS):
        slowest, done = replay(strategy, trace=[])
        assert slowest == 4 and not done.moves
        assert percent(done.samples, 0.0, 3600.0) == 100.0


@pytest.mark.parametrize("seed", range(10))
def test_half_of_all_peers_are_lost_and_ours_finds_the_best_allocation(seed):
    slowest, done = replay(OURS, seed=seed)
    assert slowest == 2
    found_s = next(
        s.at_s for s in done.samples if s.at_s > 106 and s.throughput == s.optimal
    )
    decided_s = LOSSES[-1].at_s + COSTS.expiry_s + 2 * RebalancingConfig().period_s
    shared_s = COSTS.migration_s(donors=1, downloads=3)
    assert found_s <= decided_s + COSTS.step_s + shared_s
    assert replay(without(), seed=seed)[0] <= slowest


def test_a_mover_serves_nobody_while_it_drains_downloads_and_compiles():
    """From the end of the step, at 150 s, until it is done."""
    losses = [Change(101.0, comes=False), Change(102.0, comes=False)]
    done = next(
        done
        for seed in range(100)
        if len((done := replay(OURS, losses, seed)[1]).moves) == 1
    )
    took_s = COSTS.migration_s(donors=2, downloads=1)
    assert 120 + took_s in [sample.at_s for sample in done.samples]


def test_few_donors_and_many_downloads_take_longer():
    costs = Costs()
    full_s = costs.state_bytes / costs.download_bytes_per_s
    assert costs.migration_s(donors=9, downloads=1) == pytest.approx(17 + full_s)
    assert costs.migration_s(donors=1, downloads=1) == pytest.approx(17 + 2 * full_s)
    assert costs.migration_s(donors=2, downloads=4) == pytest.approx(17 + 4 * full_s)
    assert costs.migration_s(donors=0, downloads=4) == pytest.approx(17 + full_s)


def test_a_newcomer_that_is_placed_goes_where_one_is_missing():
    trace = [Change(10.0, comes=False), Change(100.0, comes=True)]
    placed = by_gain(RebalancingConfig(), where_needed)
    slowest, done = replay(placed, trace)
    assert slowest == 4 and not done.moves
    assert [s.at_s for s in done.samples if s.throughput == s.optimal][-1] == 220.0


def test_the_same_seed_is_the_same_replay():
    assert replay(OURS, seed=7)[1].samples == replay(OURS, seed=7)[1].samples


def test_percent_is_of_what_could_have_been_trained():
    samples = [
        Sample(0.0, throughput=100.0, optimal=100.0, peers=2),
        Sample(10.0, throughput=50.0, optimal=100.0, peers=2),
        Sample(30.0, throughput=0.0, optimal=50.0, peers=1),
    ]
    assert percent(samples, 0.0, 20.0) == 75.0
    assert percent(samples, 10.0, 30.0) == 50.0
    assert percent(samples, 20.0, 50.0) == 25.0
