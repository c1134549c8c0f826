"""A commit that some have heard of becomes whole (design, section 5)."""

import asyncio
import functools

import pytest

from swarm_jax.core import closing
from swarm_jax.core.closing import CommitRest
from swarm_jax.core.reports import CommitRecord, Report
from swarm_jax.core.stage_state import StageState
from swarm_jax.roles import stage_control


def reports_with(**fields):
    """Reports that say something else than is true."""
    return lambda **said: Report(**said | fields)


async def the_leader_dies_between_commits(run):
    """Stage 0 has committed step 1, stage 1 has not."""
    await run.happens("request_sent", "commit", "trainer-a", step=1)
    run.cut("trainer-a", "stage1-0")
    await run.until(lambda: run.state("stage0-0").step == 2)
    run.kill_trainer()


@pytest.mark.parametrize(
    ("reported", "verdict"),
    [
        ({}, "right"),
        ({"last_commit": None}, "not finished"),
        ({"last_commit": CommitRecord(1, 0.0)}, "wrong parameters"),
    ],
)
def test_a_peer_reports_its_last_commit(play, monkeypatch, reported, verdict):
    """N. The leader dies when stage 0 has committed and stage 1 has not.

    Off: the next leader does not know that there was a commit, or not its norm.
    """
    monkeypatch.setattr(stage_control, "Report", reports_with(**reported))

    async def another_follows(run):
        await the_leader_dies_between_commits(run)
        run.start_trainer("trainer-b")

    outcome = play([1, 1], another_follows)
    assert outcome.verdict == verdict


def test_a_peer_hands_its_last_commit_on_with_its_state(rule, play):
    """N. Stage 0 has committed; a joiner takes its state, and it dies.

    Off: the joiner cannot say how the step was committed.
    """
    adopt = StageState.adopt

    def without_record(state, position):
        adopt(state, position._replace(last_commit=None))

    rule.off(StageState, "adopt", without_record)

    async def only_the_joiner_is_left(run):
        await the_leader_dies_between_commits(run)
        run.swarm.start_peer(0)
        await run.until(lambda: run.state("stage0-1").step == 2)
        run.kill("stage0-0")
        run.start_trainer("trainer-b")

    outcome = play([1, 1], only_the_joiner_is_left)
    assert outcome.verdict == rule.gives("right", off="not finished")


def test_the_rest_is_committed_only_one_step_apart(rule, play, caplog):
    """g. stage1-0 has prepared step 1 and is cut off; the others close steps 1 and 2.

    Then stage1-1 freezes and stage1-0 is back: stage 1 is named, until stage1-1 wakes.
    Off: stage1-0 commits step 1 without its norm, which nobody knows any more.
    """
    finish_commit = closing._finish_commit

    def with_any_norm(stages, high, step):
        ready = [
            p.peer
            for peers in stages.values()
            for p in peers
            if p.step == p.prepared_step == step.number
        ]
        if ready:
            return CommitRest(CommitRecord(step.number, 0.0), tuple(ready))
        return finish_commit(stages, high, step)

    rule.off(closing, "_finish_commit", with_any_norm)

    async def one_falls_behind(run):
        link = "trainer-a", "stage1-0"
        await run.happens("request_sent", "commit", "trainer-a", step=1)
        run.cut(*link, silent=False)
        freeze = functools.partial(run.network.freeze, "stage1-1")
        run.at("answered", "commit", "stage1-1", freeze, step=2)
        await run.until(lambda: run.state("stage1-1").step == 3)
        run.heal(*link)
        await asyncio.sleep(20.0)
        run.network.thaw("stage1-1")

    outcome = play([1, 2], one_falls_behind, steps=4)
    named = "stage 1: no peer with the state of step 3 (the newest is at step 1)"
    assert (named in caplog.text) == rule.is_on
    assert outcome.verdict == rule.gives("right", off="wrong parameters")


def test_a_step_can_be_replayed_until_all_have_committed_it(rule, play):
    """V. stage1-0 alone has prepared step 1; stage 0 commits, and stage1-0 is killed.

    stage1-1, frozen meanwhile, wakes at step 1, whose microbatches must be run again.
    Off: the parameters that they need are gone.
    """
    commit = StageState.commit

    def drop_previous(state, gradient_norm):
        commit(state, gradient_norm)
        state.can_replay = False

    rule.off(StageState, "commit", drop_previous)

    async def the_gradient_dies(run):
        await run.until(lambda: run.state("stage1-1").step == 1)
        run.network.freeze("stage1-1")
        await run.happens("request_arrived", "commit", "stage1-0", step=1)
        run.kill("stage1-0")
        run.network.thaw("stage1-1")

    outcome = play([1, 2], the_gradient_dies)
    assert outcome.verdict == rule.gives("right", off="not finished")
