"""Exact arithmetic: any split of the work gives the same bits."""

import pytest

from swarm_jax.sim.chaos import (
    Broken,
    Fault,
    Schedule,
    failure,
    random_schedule,
    run_schedule,
    shrink,
)


def kill(stage, replica, op, nth):
    return Fault("kill", stage, replica, op, nth, 0.0, 0.0)


@pytest.mark.parametrize("peers", [(1,), (3,), (2, 3), (1, 2, 3, 2)])
def test_any_number_of_peers_gives_the_same_bits(peers):
    run_schedule(Schedule(peers, 1, ()))


@pytest.mark.parametrize("seed", range(60))
def test_random_schedules_end_as_without_faults(seed):
    assert failure(random_schedule(seed)) is None


def test_the_oracle_sees_a_microbatch_that_is_counted_twice(monkeypatch):
    """A peer that keeps its sum at a drop, and says that it has dropped it."""
    monkeypatch.setattr("swarm_jax.sim.modelled.ModelledCompute._clear", _keep_the_sum)
    with pytest.raises(Broken, match="other parameters"):
        run_schedule(Schedule((1, 2), 1, ()))


def test_the_oracle_sees_a_fault_that_crashes_what_it_strikes(monkeypatch):
    async def crash(server, timeout_s):
        raise RuntimeError("drain crashed")

    monkeypatch.setattr("swarm_jax.roles.stage_server.StageServer.drain", crash)
    drain = Fault("drain", 0, 0, "relay", 3, 0.0, 0.0)
    assert "drain crashed" in failure(Schedule((2, 2), 1, (drain,)))


def test_the_oracle_sees_steps_without_a_record(monkeypatch):
    monkeypatch.setattr(
        "swarm_jax.sim.swarm.Records.write", lambda self, **record: None
    )
    with pytest.raises(Broken, match="expected=0"):
        run_schedule(Schedule((1, 1), 1, ()))


def _keep_the_sum(compute):
    import numpy as np

    if not hasattr(compute, "_sum_was_made"):
        compute._sum_was_made = True
        compute._sum = np.zeros(3)
    compute._reduced = None


def test_a_failing_schedule_is_shrunk_to_the_faults_that_it_needs(monkeypatch):
    def broken(schedule):
        return "broken" if any(f.kind == "kill" for f in schedule.faults) else None

    monkeypatch.setattr("swarm_jax.sim.chaos.failure", broken)
    faults = (kill(0, 0, "relay", 1), *random_schedule(5).faults)
    others = tuple(f for f in faults[1:] if f.kind != "kill")
    shortest = shrink(Schedule((2, 2), 1, (*others, faults[0], *others)))
    assert shortest.faults == (faults[0],)


def test_schedules_are_a_function_of_their_seed_and_travel_as_data():
    schedule = random_schedule(7)
    assert schedule == random_schedule(7) != random_schedule(8)
    assert Schedule.from_dict(schedule.to_dict()) == schedule
