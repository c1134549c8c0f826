"""Random schedules are data, are right, and are shrunk when they are not."""

from dataclasses import replace

import pytest

from swarm_jax.sim.chaos import failure, shrink
from swarm_jax.sim.faults import KINDS, Fault, Schedule
from swarm_jax.sim.schedules import random_schedule


@pytest.mark.parametrize("seed", range(60))
def test_random_schedules_end_as_without_faults(seed):
    assert failure(random_schedule(seed)) is None


@pytest.mark.parametrize("seed", range(30))
def test_those_with_a_tied_head_do_so_too(seed):
    assert failure(random_schedule(seed, tied_head=True)) is None


@pytest.mark.parametrize("seed", range(60, 90))
def test_those_with_delayed_updates_do_so_too(seed):
    tied_head = seed % 3 == 0
    schedule = random_schedule(seed, tied_head=tied_head)
    assert failure(replace(schedule, delayed_updates=True)) is None


@pytest.mark.chaos
@pytest.mark.parametrize("tied_head", [False, True])
@pytest.mark.parametrize("seed", range(100, 300))
def test_more_of_those_do_so_too(seed, tied_head):
    schedule = random_schedule(seed, tied_head=tied_head)
    assert failure(replace(schedule, delayed_updates=True)) is None


def test_schedules_are_a_function_of_their_seed_and_travel_as_data():
    schedule = random_schedule(7)
    assert schedule == random_schedule(7) != random_schedule(8)
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    tied = random_schedule(7, tied_head=True)
    assert Schedule.from_dict(tied.to_dict()) == tied
    assert tied.tied_head and not schedule.tied_head
    delayed = replace(schedule, delayed_updates=True)
    assert Schedule.from_dict(delayed.to_dict()) == delayed != schedule


def test_all_kinds_of_faults_come_up():
    seen = {f.kind for seed in range(60) for f in random_schedule(seed).faults}
    assert seen == set(KINDS) - {"crash_alone"}, "a lost stage is the matrix's"


def test_those_with_a_tied_head_lose_a_gradient_of_one_end_now_and_then():
    tied = [random_schedule(seed, tied_head=True) for seed in range(60)]
    first = [schedule.faults[0] for schedule in tied]
    asleep = [f for f in first if (f.kind, f.when) == ("hang", "answered commit")]
    assert 20 < len(asleep) < 40
    assert min(len(schedule.peers_per_stage) for schedule in tied) == 2


def test_swarms_of_one_to_four_stages_come_up():
    sizes = {len(random_schedule(seed).peers_per_stage) for seed in range(60)}
    assert sizes == {1, 2, 3, 4}


def test_a_failing_schedule_is_shrunk_to_the_faults_that_it_needs(monkeypatch):
    def broken(schedule):
        return "broken" if any(f.kind == "crash" for f in schedule.faults) else None

    monkeypatch.setattr("swarm_jax.sim.chaos.failure", broken)
    crash = Fault(kind="crash", peer="stage0-0", when="answered relay")
    others = tuple(f for f in random_schedule(5).faults if f.kind != "crash")
    shortest = shrink(Schedule((2, 2), 1, (*others, crash, *others)))
    assert others and shortest.faults == (crash,)
