"""Peers that answer but do not act, and peers that cannot be reached."""

import pytest

FOR_EVER_S = 10_000.0


@pytest.mark.parametrize("operation", ["apply", "gradient_sum", "load_reduced"])
def test_a_stuck_device_whose_peer_answers_is_left_out(play, operation):
    """stage1-0 answers every collect, but does not do what the step's close asks."""

    async def stick(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.slow_s["stage1-0", operation] = FOR_EVER_S

    outcome = play([1, 2], stick, steps=6, deadline_s=600.0, relay_timeout_s=40.0)
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-0", "stage1-1"}


def test_a_slow_update_holds_the_others_up_once(play):
    """An update of 10 s: the others go on after control_timeout_s, and it follows."""

    async def slow(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.slow_s["stage1-0", "apply"] = 10.0
        await run.until(lambda: run.state("stage1-1").step == 4)
        assert run.state("stage1-0").step == 1

    outcome = play([1, 2], slow, steps=40, control_timeout_s=1.0)
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-0", "stage1-0", "stage1-1"}


def test_a_stage_whose_only_peer_is_slow_is_not_lost(play):
    """stage1-0 updates for 50 s: nobody starts the run again meanwhile."""

    async def slow(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.slow_s["stage1-0", "apply"] = 50.0
        await run.until(lambda: run.swarm.seconds[-1]["waiting"])
        waiting = run.swarm.seconds[-1]["waiting"]
        assert "Still at what they were asked to do: age1-0" in waiting

    outcome = play([1, 1], slow, deadline_s=200.0, lost_stage_s=5.0)
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-0", "stage1-0"}


@pytest.mark.parametrize("what", ["joiner", "member"])
def test_who_voids_rounds_for_good_costs_ever_less(play, what):
    """stage1-0 cannot be reached by its stage peers, but by everybody else.

    As a joiner or as a member: 40 steps cost far less than 40 rounds that time out.
    """
    timeout_s = 10.0

    async def cut(run):
        def cut_off(peer):
            for other in {"stage1-0", "stage1-1", "stage1-2"} - {peer}:
                run.cut(peer, other)

        await run.until(lambda: run.state("stage1-0").step == 1)
        if what == "member":
            cut_off("stage1-0")
        else:
            run.at("request_sent", "manifest", "stage1-2", lambda: cut_off("stage1-2"))
            run.swarm.start_peer(1)

    outcome = play(
        [1, 2], cut, steps=40, deadline_s=600.0, allreduce_timeout_s=timeout_s
    )
    assert outcome.verdict == "right"
    assert outcome.ended_s < 12 * timeout_s


def test_a_joiner_is_not_at_fault_when_a_member_is(play):
    """stage1-0 dies in an all-reduce of which stage1-2, that joins, is a member.

    All say that the round was void; the joiner takes part in the next one.
    """

    async def kill(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.wires.delay("stage1-1", "stage1-2", 1.0)
        run.wires.delay("stage1-0", "stage1-2", 1.0)
        run.swarm.start_peer(1)
        await run.happens("allreduce_joined", "allreduce", "stage1-2")
        run.kill("stage1-0")

    outcome = play([1, 2], kill, steps=12)
    assert outcome.verdict == "right"
    assert outcome.count("request_arrived", "manifest", "stage1-1") == 1
