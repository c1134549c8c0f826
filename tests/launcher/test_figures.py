"""Figures of a soak, from made-up records."""

import pytest

from swarm_jax.launcher.figures import (
    Close,
    Fault,
    join_median_s,
    loss_difference,
    mean_share,
    percentile,
    recovery_figures,
    recovery_s,
    smallest_share,
    step_figures,
    tokens_per_s,
)


def closes(*times_s):
    return [Close(time_s, 100) for time_s in times_s]


def test_speed_is_over_the_time_between_the_closes():
    steps = closes(1, 2, 3, 4, 10)
    assert tokens_per_s(steps, 1, 4) == 100.0
    assert tokens_per_s(steps, 3, 10) == pytest.approx(200 / 7)
    assert tokens_per_s(steps, 5, 10) == tokens_per_s([], 0, 10) == 0.0


def test_recovery_ends_with_the_first_whole_step_at_full_speed():
    # 100 tokens/s when whole. The kill at 3.5 holds up the step that closes at 6.5,
    # and the next one, with two of three peers, takes 2 s; then they take 1.5 s.
    kill = Fault(3.5, 2 / 3)
    steps = closes(1, 2, 3, 6.5, 8.5, 10, 11.5)
    assert recovery_s(kill, [kill], steps, 100.0) == 10 - 3.5
    # Nearly: 0.9 of 66.7 tokens/s are 60; a step of 1.7 s has 58.8.
    steps = closes(1, 2, 3, 6.5, 8.2)
    assert recovery_s(kill, [kill], steps, 100.0) is None
    steps = closes(1, 2, 3, 6.5, 8.1)
    assert recovery_s(kill, [kill], steps, 100.0) == pytest.approx(4.6)


def test_a_swarm_that_stays_slow_has_not_recovered():
    kill = Fault(3.5, 2 / 3)
    steps = closes(1, 2, 3, *range(5, 60, 2))  # 50 tokens/s, of 60 that are asked for
    assert recovery_s(kill, [kill], steps, 100.0) is None


def test_a_fault_that_hits_nothing_takes_a_whole_step_to_recover_from():
    # The step was committed 10 ms after the fault: it says nothing about it.
    fault = Fault(2.0, 1.0)
    assert recovery_s(fault, [fault], closes(1, 2.01), 100.0) is None
    assert recovery_s(fault, [fault], closes(1, 2.01, 3.01), 100.0) == (
        pytest.approx(1.01)
    )
    skipped = [Close(2.5, 0), Close(3.5, 0), Close(4.5, 100)]
    assert recovery_s(fault, [fault], skipped, 100.0) == 2.5


def test_after_another_fault_less_can_be_expected():
    # Two of three peers of a stage are killed, 5 s apart; the last one takes 3 s.
    kills = [Fault(3.5, 2 / 3), Fault(8.5, 1 / 3)]
    steps = closes(1, 2, 3, 9.5, 12.5, 15.5)
    times_s = [recovery_s(kill, kills, steps, 100.0) for kill in kills]
    assert times_s == [9.0, 4.0]
    # What the second took away does not excuse a slow step before it.
    steps = closes(1, 2, 3, 4, 7, 8.4)
    assert recovery_s(kills[0], kills, steps, 100.0) == pytest.approx(4.9)
    assert recovery_s(kills[0], kills, closes(1, 2, 3, 4, 7), 100.0) is None


def test_recoveries_are_counted_and_ranked_and_none_is_the_slowest():
    faults = [Fault(at_s, 1.0, "SIGKILL") for at_s in (0.5, 1.5, 1.75, 9.5)]
    figures = recovery_figures(faults, closes(1, 2, 3, 4), 100.0)
    log = figures.pop("fault_log")
    assert [entry["recovery_s"] for entry in log] == [1.5, 1.5, 1.25, None]
    assert log[0] | {"recovery_s": 0} == {
        **{"at_s": 0.5, "share": 1.0, "what": "SIGKILL", "recovery_s": 0}
    }
    assert figures == {
        **{"faults": 4, "recoveries": 3},
        **{"recovery_p50_s": 1.5, "recovery_p95_s": None},
    }
    assert recovery_figures([], closes(1, 2), 100.0)["recovery_p95_s"] is None


def test_percentiles_are_values_that_occurred():
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 95) == 4.0
    assert percentile([float(i) for i in range(1, 101)], 95) == 95.0
    assert percentile([], 50) is None


def test_the_share_is_that_of_the_stage_that_lost_most():
    assert smallest_share({0: ["a", "b", "c"], 1: ["d"]}, 3) == 1 / 3
    assert smallest_share({0: ["a", "b"], 1: []}, 2) == 0.0
    assert smallest_share({0: ["a", "b", "c"]}, 2) == 1.0
    assert smallest_share({}, 2) == 0.0
    assert mean_share([(1, 1.0), (2, 0.5), (3, 1.0)], since_s=2) == 0.75
    assert mean_share([(1, 1.0)], since_s=2) is None


def record(step, loss, **changes):
    audit = {"expected": 8, "counted_once": 8, "lost": 0, "counted_twice": 0}
    counts = {f"microbatches_{name}": count for name, count in audit.items()}
    return {"step": step, "train_loss": loss, **counts, **changes}


def test_the_records_of_all_trainers_make_one_sum():
    records = {
        3: record(3, 2.0, microbatches_counted_once=7, microbatches_lost=1),
        1: record(1, 4.0, **{"validation_loss": 3.5, "validation_loss/wiki": 3.7}),
        2: {"step": 2, "skipped": True},
        5: record(5, 1.5),
    }
    assert step_figures(records) == {
        "steps": 5,
        "steps_without_record": 1,
        "skipped_steps": 1,
        "final_train_loss": 1.5,
        "validation_loss": 3.5,
        "validation_loss/wiki": 3.7,
        "microbatches_expected": 24,
        "microbatches_counted_once": 23,
        "microbatches_lost": 1,
        "microbatches_counted_twice": 0,
    }
    assert step_figures({})["final_train_loss"] is None


def test_the_loss_is_compared_step_by_step():
    control = {1: 4.0, 2: 2.0, 3: 1.0}
    assert loss_difference({1: 4.0, 2: 2.5}, control) == 0.25
    assert loss_difference({1: 4.0, 2: 1.0}, control) == 0.5
    assert loss_difference({4: 1.0}, control) is None


def test_the_median_join_is_over_those_who_joined():
    key = "join_to_first_microbatch_s"
    records = [{"step": 3, key: 5.0}, {"step": 4}, {"step": 6, key: 9.0}, {key: 6.0}]
    assert join_median_s(records) == 6.0
    assert join_median_s([{"step": 1}]) is None
