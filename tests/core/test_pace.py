"""When the last microbatches are given up, and whom they are sent past."""

import math

import pytest

from swarm_jax.core.pace import FEW, LATE, Pace


def hop(stage, peer, hop_s):
    return {"stage": stage, "peer": peer, "hop_s": hop_s}


def test_only_the_last_few_are_given_up_and_only_when_they_are_late():
    pace = Pace()
    assert pace.patience_s(1) is None
    for took_s in (1.0, 9.0, 2.0, 3.0, 2.0, 2.0, 2.0, 1.0):
        pace.answered(took_s, [])
    assert pace.patience_s(int(8 * FEW)) == LATE * 2.0
    assert pace.patience_s(int(8 * FEW) + 1) is None


def test_in_each_stage_some_are_fast():
    pace = Pace()
    assert pace.fast() == frozenset()
    pace.answered(1.0, [hop(0, "a", 0.1), hop(1, "x", 5.0)])
    pace.answered(1.0, [hop(0, "b", 0.3), hop(1, "y", 9.0)])
    pace.answered(1.0, [hop(0, "c", 0.1), hop(1, "z", 11.0)])
    pace.answered(1.0, [hop(0, "c", 0.2)])
    assert pace.fast() == {"a", "c", "x", "y"}


@pytest.mark.parametrize(
    "lie",
    [
        {},
        hop("0", "liar", 0.1),
        hop(0, ["liar"], 0.1),
        hop(0, "liar", "soon"),
        hop(0, "liar", math.nan),
        hop(0, "liar", -math.inf),
    ],
)
def test_what_a_peer_writes_into_a_trace_does_no_harm(lie):
    pace = Pace()
    pace.answered(1.0, [lie, hop(0, "a", 0.1)])
    assert pace.fast() == {"a"}
