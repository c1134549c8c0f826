"""A new peer goes where the swarm is slowest, and newcomers spread."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from swarm_jax.core.placement import place

RATES = st.lists(st.lists(st.floats(0, 1e6), max_size=4), min_size=1, max_size=5)
NAMES = st.sets(st.text(min_size=1, max_size=4), min_size=1, max_size=12)


def test_a_stage_without_peers_comes_first():
    assert place([[10.0], [], [1.0]], ["new"]) == {"new": 1}


def test_then_the_stage_of_the_least_throughput():
    assert place([[10.0], [3.0, 3.0], [8.0]], ["new"]) == {"new": 1}


def test_a_peer_that_nobody_has_measured_counts_as_the_mean():
    assert place([[0.0], [10.0, 2.0], [6.0, 6.0]], ["new"]) == {"new": 0}


def test_a_heavy_stage_needs_more():
    placed = place([[10.0], [10.0]], ["a", "b", "c", "d"], work=[3.0, 1.0])
    assert Counter(placed.values()) == {0: 3, 1: 1}
    placed = place([[30.0], [30.0]], ["a", "b", "c", "d"], work=[1.0, 3.0])
    assert Counter(placed.values()) == {0: 1, 1: 3}


def test_six_that_start_together_are_two_of_each_stage():
    placed = place([[], [], []], [f"peer{i}" for i in range(6)])
    assert Counter(placed.values()) == {0: 2, 1: 2, 2: 2}


@given(RATES, NAMES)
def test_whoever_sees_the_same_decides_the_same(stages, newcomers):
    placed = place(stages, newcomers)
    assert placed == place(stages, list(reversed(sorted(newcomers))))
    assert placed.keys() == newcomers
    assert all(0 <= stage < len(stages) for stage in placed.values())
    empty = [stage for stage, peers in enumerate(stages) if not peers]
    assert set(empty[: len(newcomers)]) <= set(placed.values())
