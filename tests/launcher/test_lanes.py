"""A lane passes its rate, whoever asks and when."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_jax.launcher.lanes import Lane


@given(
    st.lists(
        st.tuples(st.integers(1, 10**6), st.floats(0, 5)), min_size=1, max_size=50
    ),
    st.floats(1e3, 1e9),
)
def test_no_interval_carries_more_than_the_rate(asked, rate):
    lane, now_s, starts, ends = Lane(), 0.0, [], []
    for num_bytes, pause_s in asked:
        now_s += pause_s
        ends.append(lane.book(num_bytes, now_s, rate))
        starts.append(ends[-1] - 8 * num_bytes / rate)
        assert starts[-1] >= now_s - 1e-6 * ends[-1]
    for end, start in zip(ends, starts[1:], strict=False):
        assert start >= end - 1e-6 * ends[-1]


def test_a_lane_that_always_has_something_to_do_is_never_idle():
    lane = Lane()
    assert lane.book(1000, 2.0, 8000.0) == 3.0
    assert lane.book(500, 2.1, 8000.0) == 3.5
    assert lane.book(500, 10.0, 8000.0) == pytest.approx(10.5)


def test_without_a_rate_all_is_through_at_once():
    assert Lane().book(10**9, 7.0, math.inf) == 7.0
