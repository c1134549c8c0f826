"""What stages can do, from noisy records."""

from dataclasses import dataclass

import pytest

from swarm_jax.core.capacity import poorest, speeds_of, totals_of
from swarm_jax.core.reports import DRAINING, JOINING, OFFLINE, ONLINE


@dataclass(frozen=True)
class Record:
    tokens_per_s: float
    state: str = ONLINE
    queue: int = 0


def speeds(*stages, work=None, same_speed=1.4):
    records = [{str(i): record for i, record in enumerate(s)} for s in stages]
    found = speeds_of(records, work or [1.0] * len(stages), same_speed)
    return [list(peers.values()) for peers in found]


def test_who_leaves_or_has_left_does_not_count():
    states = (ONLINE, JOINING, DRAINING, OFFLINE)
    assert speeds([Record(10.0, state) for state in states]) == [[10.0, 10.0]]


def test_who_has_not_been_measured_counts_as_the_mean():
    assert speeds([Record(0.0), Record(10.0)], [Record(30.0)]) == [[20.0, 10.0], [30.0]]
    assert speeds([Record(0.0)]) == [[1.0]]


def test_speed_is_what_a_peer_takes_with_it_to_another_stage():
    found = speeds([Record(10.0)], [Record(40.0)], work=[4.0, 1.0])
    assert found == [[40.0], [40.0]]
    assert totals_of([{"a": 40.0}, {"b": 40.0}], [4.0, 1.0]) == [10.0, 40.0]


def test_peers_of_one_kind_count_as_equally_fast():
    noisy = [Record(rate) for rate in (95.0, 98.0, 100.0, 102.0, 105.0)]
    fast = [Record(rate) for rate in (390.0, 410.0)]
    assert speeds(noisy, fast) == [[100.0] * 5, [400.0] * 2]
    assert speeds([Record(100.0), Record(150.0)]) == [[100.0, 150.0]]


def test_the_order_of_records_changes_no_bit():
    rates = [0.1, 0.2, 0.3, 1e9, 0.7]
    there = totals_of([dict(enumerate(rates))], [1.0])
    back = totals_of([dict(enumerate(reversed(rates)))], [1.0])
    assert there == back


@pytest.mark.parametrize(("totals", "stage"), [([2.0, 1.0, 1.0], 1), ([0.0], 0)])
def test_the_poorest_stage_is_the_first_of_the_slowest(totals, stage):
    assert poorest(totals) == stage
