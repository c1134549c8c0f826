"""The window finds the knee of a closed queueing network, and follows it."""

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_jax.core.window import Window


class Pipeline:
    """A slowest stage that serves one at a time, and a delay around it."""

    def __init__(self, window: Window):
        self.window = window
        self.now_s = 0.0
        self._free_s = 0.0
        self._due: list[float] = []

    def run(self, answers: int, service_s: float, delay_s: float) -> float:
        """Keeps the window full; returns answers per second."""
        began_s = self.now_s
        for _ in range(answers):
            while len(self._due) < self.window.size:
                arrived_s = self.now_s + delay_s / 2
                self._free_s = max(self._free_s, arrived_s) + service_s
                heapq.heappush(self._due, self._free_s + delay_s / 2)
            self.now_s = heapq.heappop(self._due)
            self.window.answered(self.now_s)
        return answers / (self.now_s - began_s)


def best_window(service_s: float, delay_s: float) -> float:
    return 1 + delay_s / service_s


@settings(deadline=None, max_examples=25)
@given(knee=st.floats(1.0, 40.0), limit=st.integers(1, 64), first=st.integers(1, 12))
def test_it_gets_what_the_best_window_gives_and_keeps_no_long_queue(knee, limit, first):
    service_s, delay_s = 1.0, knee - 1.0
    pipeline = Pipeline(Window(limit, first))
    pipeline.run(2000, service_s, delay_s)
    rate = pipeline.run(2000, service_s, delay_s)
    best = min(1.0, limit / best_window(service_s, delay_s))
    assert rate >= 0.8 * best
    assert 1 <= pipeline.window.size <= min(limit, 1.6 * knee + 2)


@settings(deadline=None, max_examples=15)
@given(before=st.floats(2.0, 30.0), after=st.floats(2.0, 30.0))
def test_it_follows_a_link_that_changes(before, after):
    pipeline = Pipeline(Window(limit=64))
    pipeline.run(1500, 1.0, before - 1.0)
    pipeline.run(4000, 1.0, after - 1.0)
    assert pipeline.run(1500, 1.0, after - 1.0) >= 0.8
    assert pipeline.window.size <= 1.6 * after + 2


@given(limit=st.integers(1, 30), gaps=st.lists(st.floats(0.0, 10.0), max_size=300))
def test_any_answers_leave_it_between_one_and_its_limit(limit, gaps):
    window, now_s = Window(limit), 0.0
    for gap_s in gaps:
        now_s += gap_s
        window.answered(now_s)
        assert 1 <= window.size <= limit


@pytest.mark.parametrize("answers", [3, 5, 7])
def test_what_is_half_measured_when_the_feed_pauses_is_dropped(answers):
    window = Window(limit=64)
    for number in range(answers):
        window.answered(float(number))
    window.restart()
    for number in range(7):
        window.answered(1000.0 + number)
    assert window.size == 4
    window.answered(1007.0)
    assert window.size == 8


def test_a_size_that_no_feed_is_long_enough_to_measure_is_given_up():
    window, now_s = Window(limit=64), 0.0
    for _ in range(30):
        window.restart()
        for _ in range(30 - window.size):
            now_s += 1.0 / window.size
            window.answered(now_s)
    assert 4 <= window.size <= 12
