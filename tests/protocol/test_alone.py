"""A stage's only peer closes steps with a gradient that never leaves its device."""

import pytest

from swarm_jax.core.stage_state import StageState
from swarm_jax.roles.stage_control import StageControl
from swarm_jax.sim.modelled import ModelledCompute


def started(outcome, operation, peer=""):
    return outcome.count("device_started", operation, peer)


@pytest.mark.parametrize("delayed_updates", [False, True])
def test_it_reads_no_sum_and_loads_no_mean(play, delayed_updates):
    outcome = play([1, 2], steps=4, delayed_updates=delayed_updates)
    assert outcome.verdict == "right"
    for operation in ("gradient_sum", "load_reduced"):
        assert started(outcome, operation, "stage0-0") == 0
        assert started(outcome, operation, "stage1-0") == 4
    assert started(outcome, "reduce_alone", "stage0-0") == 4
    assert started(outcome, "reduce_alone") == 4


def test_a_table_that_another_stage_shares_is_reduced_with_it(play):
    outcome = play([1, 1], steps=4, tied_head=True)
    assert outcome.verdict == "right"
    assert started(outcome, "reduce_alone") == 0
    assert started(outcome, "load_reduced") == 8


def test_a_joiner_goes_on_from_there(play):
    """It comes while stage 1 has one peer; steps are closed with both, and with one."""

    async def join_and_leave(run):
        await run.until(lambda: run.state("stage1-0").step == 2)
        run.swarm.start_peer(1)
        await run.until(lambda: run.state("stage1-1").step == 5)
        assert run.state("stage1-0").lineage == run.state("stage1-1").lineage
        run.kill("stage1-0")

    outcome = play([1, 1], join_and_leave, steps=9)
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-0", "stage1-1"}
    assert started(outcome, "reduce_alone", "stage1-0") > 1
    assert started(outcome, "reduce_alone", "stage1-1") > 1
    assert started(outcome, "gradient_sum", "stage1-1") > 1


async def another_leads(run, first=lambda: None):
    """The leader dies when stage 1 has prepared step 1, before anybody commits it."""

    def die():
        run.kill_trainer()
        first()
        run.start_trainer("trainer-b")

    await run.until(lambda: run.state("stage1-0").step == 1)
    run.at("request_sent", "commit", "trainer-a", die)


def test_two_gradients_never_have_one_name(play, monkeypatch):
    """Also those of two rounds of one step."""
    names, prepare = [], StageState.prepare

    def note(state, gradient):
        names.append(gradient)
        prepare(state, gradient)

    monkeypatch.setattr(StageState, "prepare", note)
    outcome = play([1, 1], another_leads, steps=3)
    assert outcome.verdict == "right"
    assert len(set(names)) == len(names) == 8


def test_a_sum_that_is_not_finite_leaves_nothing_prepared(play, monkeypatch):
    """In a second round of the step, after one that was prepared in vain."""
    reduce_alone = ModelledCompute.reduce_alone
    spoilt = []

    async def spoil(compute, scale):
        await reduce_alone(compute, scale)
        return float("inf")

    async def another_leads_to_it(run):
        def first():
            spoilt.append(run.state("stage1-0"))
            assert spoilt[0].can_commit
            monkeypatch.setattr(ModelledCompute, "reduce_alone", spoil)

        await another_leads(run, first)

    outcome = play([1, 1], another_leads_to_it, steps=3)
    assert outcome.verdict == "Diverged"
    assert not spoilt[0].can_commit


def test_a_sum_that_the_leader_does_not_know_is_not_taken(rule, play, monkeypatch):
    """Once a ledger is another than the leader has heard. Off: nobody notices."""
    rule.off(StageControl, "_refuse_sum", StageControl._refuse)
    digest, others = StageState.ledger_digest, ["another"]
    monkeypatch.setattr(
        StageState,
        "ledger_digest",
        lambda state: others.pop() if others else digest(state),
    )
    outcome = play([1, 1], steps=3)
    assert outcome.verdict == "right"
    assert outcome.count("request_arrived", "prepare") == rule.gives(8, off=6)
