"""The plan of a soak: who may be taken, when, and that a seed repeats it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_jax.launcher.churn import (
    PAUSE_S,
    STOP_S,
    Action,
    Churn,
    ChurnSettings,
    Kind,
    serving,
)

VIEWS = st.lists(
    st.tuples(
        st.floats(0.1, 5.0),
        st.lists(st.integers(0, 3), min_size=3, max_size=3),
        st.booleans(),
    ),
    max_size=60,
)
"""Time since the view before, servers ONLINE in each stage, whether a trainer may."""


def online(counts):
    return {s: [f"stage{s}-{i}" for i in range(n)] for s, n in enumerate(counts)}


def settings(**changes) -> ChurnSettings:
    given = {"every_s": 3.0, "seed": 1, "fault_free_s": 10.0, "quiet_end_s": 15.0}
    return ChurnSettings(**given | changes)


def plan(churn: Churn, views) -> list[tuple[float, dict, Action]]:
    """Every action with its time and what was ONLINE then."""
    taken, now_s = [], 0.0
    for passed_s, counts, replaceable in views:
        now_s += passed_s
        leader = "trainer" if replaceable else None
        action = churn.next_action(now_s, online(counts), leader)
        if action is not None:
            taken.append((now_s, online(counts), action))
    return taken


@given(VIEWS, st.integers(0, 1000))
def test_a_stages_last_online_server_is_never_taken(views, seed):
    for _, names, action in plan(Churn(settings(seed=seed), 120.0), views):
        assert action.kind in (Kind.KILL, Kind.STOP, Kind.LEAVE)
        if action.stage is None:
            assert action.target == "trainer"
        else:
            assert action.target in names[action.stage]
            assert len(names[action.stage]) > 1


@given(VIEWS, st.integers(0, 1000), st.booleans())
def test_beginning_and_end_are_quiet_and_faults_keep_their_distance(views, seed, whole):
    churn = Churn(settings(seed=seed, kill_whole_stage=whole), 80.0)
    slots = []
    for now_s, _, action in plan(churn, views):
        assert 10.0 <= now_s <= 80.0 - 15.0
        shortest_s, longest_s = STOP_S if action.kind == Kind.STOP else PAUSE_S
        assert shortest_s <= action.pause_s <= longest_s
        slots.append((now_s - 10.0) // 3.0)
    assert len(set(slots)) == len(slots)


@given(VIEWS, st.integers(0, 1000))
def test_a_seed_repeats_its_faults(views, seed):
    plans = [plan(Churn(settings(seed=seed), 120.0), views) for _ in range(2)]
    assert plans[0] == plans[1]


def test_seeds_differ_and_every_kind_comes():
    views = [(3.0, [3, 3, 3], True)] * 60
    plans = [plan(Churn(settings(seed=seed), 210.0), views) for seed in range(5)]
    assert all(plans[0] != other for other in plans[1:])
    hit = {(action.kind, action.stage) for taken in plans for _, _, action in taken}
    kinds = Kind.KILL, Kind.STOP, Kind.LEAVE
    assert hit == {(kind, stage) for kind in kinds for stage in (0, 1, 2, None)}


def test_a_whole_stage_is_killed_once_and_in_the_middle_when_asked_for():
    churn = Churn(settings(kill_whole_stage=True), 120.0)
    taken = plan(churn, [(3.0, [1, 1, 1], False)] * 40)
    whole = [(now, a) for now, _, a in taken if a.kind == Kind.KILL_STAGE]
    assert len(whole) == 1
    assert 57.5 <= whole[0][0] < 57.5 + 3.0
    assert whole[0][1].target is None and whole[0][1].stage in (0, 1, 2)
    # A last server may be killed and stopped then, but has nobody to hand over to.
    assert {a.kind for _, _, a in taken} == {Kind.KILL_STAGE, Kind.KILL, Kind.STOP}


@pytest.mark.parametrize("leader", [None, "trainer"])
def test_where_nobody_may_be_taken_nobody_is(leader):
    action = Churn(settings(), 120.0).next_action(20.0, online([1, 1, 0]), leader)
    assert (action and action.target) == leader


def peer(name, state="ONLINE"):
    return {"name": name, "state": state}


def test_a_server_serves_when_it_is_online_and_runs():
    stages = [
        {"stage": 0, "peers": [peer("a"), peer("b", "JOINING"), peer("c", "DRAINING")]},
        {"stage": 1, "peers": [peer("d"), peer("dead")]},
        {"stage": 2, "peers": []},
    ]
    assert serving(stages, {"a", "b", "c", "d"}) == {0: ["a"], 1: ["d"], 2: []}
    assert serving([], set()) == {}
