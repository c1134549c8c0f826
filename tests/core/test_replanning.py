"""Re-planning of stages for a fleet, against all plans there are."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_jax.core import replanning
from swarm_jax.core.partition import partition_layers
from swarm_jax.core.replanning import Costs, replan

ROUNDING = 1e-6


def cuts(num_layers, num_stages):
    for ends in itertools.combinations(range(1, num_layers), num_stages - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *ends, num_layers)))


def throughput(costs, layers, groups, speeds):
    sums = [math.fsum(speeds[peer] for peer in group) for group in groups]
    return min(s / share for s, share in zip(sums, costs.shares(layers), strict=True))


def best_there_is(costs, speeds, num_stages, every_cut):
    """By trying every place of every peer with every cut."""
    peers, found = sorted(speeds), 0.0
    for places in itertools.product(range(num_stages), repeat=len(peers)):
        groups = [
            [p for p, s in zip(peers, places, strict=True) if s == stage]
            for stage in range(num_stages)
        ]
        if all(groups):
            for layers in every_cut:
                found = max(found, throughput(costs, layers, groups, speeds))
    return found


@st.composite
def fleets(draw, most_peers=6):
    num_layers = draw(st.integers(1, 6))
    flops = st.integers(0, 30)
    costs = Costs(draw(st.integers(1, 20)), num_layers, draw(flops), draw(flops))
    num_stages = draw(st.integers(1, min(3, num_layers)))
    speed = st.sampled_from([1.0, 2.5, 10.0]) | st.floats(0.1, 100)
    fleet = draw(st.lists(speed, min_size=num_stages, max_size=most_peers))
    return costs, {f"peer{i}": s for i, s in enumerate(fleet)}, num_stages


@given(fleets())
@settings(deadline=None)
def test_no_plan_is_better(fleet):
    costs, speeds, num_stages = fleet
    plan = replan(costs, speeds, num_stages)
    every_cut = list(cuts(costs.num_layers, num_stages))
    best = best_there_is(costs, speeds, num_stages, every_cut)
    assert plan.throughput == pytest.approx(best, rel=ROUNDING)
    assert plan.shortfall == 0


@given(fleets())
@settings(deadline=None)
def test_no_places_are_better_where_the_layers_stay(fleet):
    costs, speeds, num_stages = fleet
    layers = list(cuts(costs.num_layers, num_stages))[-1]
    plan = replan(costs, speeds, num_stages, layers_per_stage=layers)
    assert plan.layers_per_stage == layers
    best = best_there_is(costs, speeds, num_stages, [layers])
    assert plan.throughput == pytest.approx(best, rel=ROUNDING)


@given(fleets(), st.integers(1, 6))
@settings(deadline=None)
def test_no_stage_has_more_blocks_than_its_peers_can_hold(fleet, max_layers):
    costs, speeds, num_stages = fleet
    plan = replan(costs, speeds, num_stages, max_layers=max_layers)
    every_cut = [
        layers
        for layers in cuts(costs.num_layers, num_stages)
        if max(layers) <= max_layers
    ]
    if plan is None:
        assert not every_cut
        return
    assert max(plan.layers_per_stage) <= max_layers
    best = best_there_is(costs, speeds, num_stages, every_cut)
    assert plan.throughput == pytest.approx(best, rel=ROUNDING)


def check(plan, costs, speeds, num_stages):
    assert len(plan.layers_per_stage) == num_stages
    assert sum(plan.layers_per_stage) == costs.num_layers
    assert min(plan.layers_per_stage) >= 1
    assert sorted(itertools.chain(*plan.peers)) == sorted(speeds)
    assert all(plan.peers)
    expected = throughput(costs, plan.layers_per_stage, plan.peers, speeds)
    assert plan.throughput == pytest.approx(expected, rel=ROUNDING)


@given(fleets(most_peers=9))
@settings(deadline=None)
def test_every_peer_serves_one_stage_and_every_block_is_in_one(fleet):
    costs, speeds, num_stages = fleet
    check(replan(costs, speeds, num_stages), costs, speeds, num_stages)


@given(fleets(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_peers_does_not_matter(fleet, random):
    costs, speeds, num_stages = fleet
    shuffled = list(speeds.items())
    random.shuffle(shuffled)
    assert replan(costs, speeds, num_stages) == replan(
        costs, dict(shuffled), num_stages
    )


@given(fleets())
@settings(deadline=None)
def test_a_climb_admits_how_far_from_the_best_it_may_be(fleet):
    costs, speeds, num_stages = fleet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replanning, "MAX_STATES", 0)
        climbed = replan(costs, speeds, num_stages)
    best = replan(costs, speeds, num_stages).throughput
    check(climbed, costs, speeds, num_stages)
    assert climbed.throughput <= best * (1 + ROUNDING)
    assert best <= climbed.throughput * (1 + climbed.shortfall) * (1 + ROUNDING)


@given(st.integers(0, 20), st.integers(2, 40), st.integers(1, 6))
def test_equal_peers_keep_the_balanced_partition_s_throughput(head, layers, stages):
    stages = min(stages, layers)
    costs = Costs(10, layers, 0, head)
    balanced = partition_layers(10, layers, stages, 0, head)
    fleet = {f"peer{i}": 1.0 for i in range(stages)}
    shares = costs.shares([stage.num_layers for stage in balanced])
    plan = replan(costs, fleet, stages)
    assert plan.throughput == pytest.approx(1 / max(shares))


def test_the_fast_peer_holds_most_layers():
    plan = replan(Costs(1, 8), {"fast": 6.0, "slow": 1.0, "slower": 1.0}, 3)
    layers = dict(zip(itertools.chain(*plan.peers), plan.layers_per_stage, strict=True))
    assert layers == {"fast": 6, "slow": 1, "slower": 1}
    assert plan.throughput == pytest.approx(8.0)


@pytest.mark.parametrize("peers", [40, 400])
def test_a_large_mixed_fleet_comes_near_to_what_it_could_do_at_most(peers):
    speeds = {f"peer{i:03d}": 1 + 0.37 * (i * 7919 % 97) for i in range(peers)}
    costs = Costs(100, 48, 0, 130)
    plan = replan(costs, speeds, 6)
    check(plan, costs, speeds, 6)
    assert plan.shortfall < 0.02


def test_a_large_fleet_of_two_kinds_is_planned_exactly():
    speeds = {f"peer{i:02d}": 1.0 if i % 3 else 2.0 for i in range(60)}
    plan = replan(Costs(1, 24), speeds, 8)
    assert plan.shortfall == 0
    assert plan.throughput == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("peers", "stages", "max_layers"), [(2, 3, None), (9, 7, None), (4, 2, 2)]
)
def test_where_there_is_no_plan_none_is_given(peers, stages, max_layers):
    speeds = {f"peer{i}": 1.0 for i in range(peers)}
    assert replan(Costs(1, 6), speeds, stages, max_layers=max_layers) is None
