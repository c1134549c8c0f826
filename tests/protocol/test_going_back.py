"""All who have the newest state are gone, and the peers that are left are older."""

import asyncio

from swarm_jax.core.newest import Newest
from swarm_jax.core.reports import Report
from swarm_jax.roles import stage_control
from swarm_jax.roles.lease import Lease
from swarm_jax.roles.peers import SwarmView
from swarm_jax.roles.stage_server import StageServer

WAKES_S = 20.0
"""Long after the records of a frozen peer, and the lease of a dead trainer, expired."""


def recorded(outcome):
    return [record["step"] for record in outcome.run.swarm.steps]


def nothing(*args):
    pass


def having_heard_nothing(**fields):
    return Report(**fields | {"newest_heard": (0, 0)})


async def counting(run, peer, step):
    """Until the leader knows that ``peer`` is at ``step``."""
    state = run.state(peer)
    await run.until(lambda: state.step == step and state.ledger.counted)


def freeze_for_a_while(run, *peers):
    for peer in peers:
        run.network.freeze(peer)
        asyncio.get_running_loop().call_later(WAKES_S, run.network.thaw, peer)


def test_a_run_of_one_stage_does_not_go_back_by_itself(rule, play, caplog):
    """The only peer freezes at step 2; another one starts, and finds nobody.

    Off: the run goes on from step 0, and nobody is told.
    """
    rule.off(Newest, "saw", nothing)

    async def freeze(run):
        await counting(run, "stage0-0", 2)
        freeze_for_a_while(run, "stage0-0")
        run.swarm.start_peer(0)

    outcome = play([1], freeze)
    assert outcome.verdict == "right"
    assert recorded(outcome) == rule.gives([1, 2, 3], off=[1, 2, 1, 2, 3])
    named = "stage 0: no peer with the state of step 2 (the newest is at step 0)"
    assert (named in caplog.text) == rule.is_on


def test_a_run_whose_newest_peers_all_vanish_does_not_go_back(rule, play):
    """The peers left in two stages have missed step 1, and what came after it.

    Off: the run goes on from step 1.
    """
    rule.off(Newest, "saw", nothing)

    async def freeze(run):
        newest, older = ("stage0-0", "stage1-0"), ("stage0-1", "stage1-1")
        await run.until(lambda: run.state("stage0-0").step == 1)
        for peer in older:
            run.network.freeze(peer)
        await counting(run, "stage1-0", 3)
        freeze_for_a_while(run, *newest)
        for peer in older:
            run.network.thaw(peer)

    outcome = play([2, 2], freeze, steps=4)
    assert outcome.verdict == "right"
    again = [1, 2, 3, 2, 3, 4]
    assert recorded(outcome) == rule.gives([1, 2, 3, 4], off=again)


def test_who_leads_next_knows_how_far_the_run_has_been(rule, play, monkeypatch):
    """As with one stage; when the records of the newest peer have expired, trainer-b
    starts, and the leader dies. No peer tells what it has heard.

    Off: trainer-b goes on from step 0.
    """
    rule.off(Lease, "_learn", nothing)
    monkeypatch.setattr(stage_control, "Report", having_heard_nothing)

    async def freeze_and_kill(run):
        await counting(run, "stage0-0", 2)
        freeze_for_a_while(run, "stage0-0")
        run.swarm.start_peer(0)
        await asyncio.sleep(run.config.tuning.directory_expiry_s + 1.0)
        run.start_trainer("trainer-b")
        await asyncio.sleep(1.0)
        run.kill_trainer()

    outcome = play([1], freeze_and_kill)
    assert outcome.verdict == "right"
    assert recorded(outcome) == rule.gives([1, 2, 3], off=[1, 2, 1, 2, 3])


def test_a_peer_remembers_what_the_directory_told(rule, play):
    """As before, but trainer-b starts when lease and records have expired.

    Off: the peer that is left says nothing, and the run goes back.
    """
    rule.off(stage_control, "Report", having_heard_nothing)

    async def freeze_and_kill(run):
        await counting(run, "stage0-0", 2)
        run.kill_trainer()
        freeze_for_a_while(run, "stage0-0")
        run.swarm.start_peer(0)
        tuning = run.config.tuning
        await asyncio.sleep(1.0 + max(tuning.directory_expiry_s, tuning.lease_s))
        run.start_trainer("trainer-b")

    outcome = play([1], freeze_and_kill)
    assert outcome.verdict == "right"
    assert recorded(outcome) == rule.gives([1, 2, 3], off=[1, 2, 1, 2, 3])


def test_a_trainer_that_starts_late_learns_from_the_directory(rule, play, monkeypatch):
    """stage0-1 has missed all but step 1; the newest peer freezes, the trainer dies.

    It does not fetch what it lacks by itself, as it would if it saw that it is behind.
    Off: the next one, that no trainer has told anything, goes on from step 1.
    """
    rule.off(SwarmView, "_note_newest", nothing)
    monkeypatch.setattr(StageServer, "_join_if_behind", nothing)

    async def freeze_and_kill(run):
        await run.until(lambda: run.state("stage0-1").step == 1)
        run.cut("trainer-a", "stage0-1", silent=False)
        await counting(run, "stage0-0", 3)
        run.kill_trainer()
        await asyncio.sleep(1.0)
        freeze_for_a_while(run, "stage0-0")
        run.start_trainer("trainer-b")

    options = {"lease_s": 0.5, "directory_expiry_s": 60.0}
    outcome = play([2], freeze_and_kill, steps=4, **options)
    assert outcome.verdict == "right"
    assert recorded(outcome)[-1] == 4
    assert len(recorded(outcome)) == rule.gives(4, off=6)


def test_who_holds_the_gradient_of_the_last_commit_follows(rule, play):
    """stage0-1 has prepared step 1 and is cut off; stage0-0 commits it, and is killed.

    Off: how it was committed is forgotten, and its state lost.
    """
    rule.off(Newest, "knows", nothing)

    async def kill(run):
        await run.happens("request_sent", "commit", "trainer-a", step=1)
        run.cut("trainer-a", "stage0-1", silent=False)
        await run.until(lambda: run.state("stage0-0").step == 2)
        await run.happens("answer_arrived", "collect", "trainer-a")
        await asyncio.sleep(0.01)
        run.kill("stage0-0")
        run.heal("trainer-a", "stage0-1")

    outcome = play([2], kill)
    assert outcome.verdict == rule.gives("right", off="not finished")
    if rule.is_on:
        assert recorded(outcome) == [1, 2, 3]


def test_a_run_of_one_stage_starts_again_when_told_to(play, caplog):
    """The only peer is killed at step 2; the one after it has nothing."""

    async def lose(run):
        trainer = run.swarm.make_trainer("trainer-a", restart_if_lost=lambda: True)
        run.trainers["trainer-a"] = asyncio.ensure_future(trainer.run())
        await run.until(lambda: run.state("stage0-0").step == 2)
        run.kill("stage0-0")
        run.swarm.start_peer(0)

    outcome = play([1], lose, trainers=0, lost_stage_s=3.0)
    assert outcome.verdict == "right"
    assert outcome.run.state("stage0-1").generation == 1
    assert "the run starts again" in caplog.text


def test_a_peer_does_not_take_the_last_state_along(play):
    """stage0-1 freezes in the last step; stage0-0 is told to leave before its end.

    It stays until stage0-1 has fetched the state. When it went, the run never ended.
    """

    async def leave(run):
        await counting(run, "stage0-0", 2)
        run.network.freeze("stage0-1")
        await run.happens("request_sent", "commit", "trainer-a", step=2)
        asyncio.get_running_loop().call_later(5.0, run.network.thaw, "stage0-1")
        assert await run.swarm.servers["stage0-0"].drain(40.0)
        await run.swarm.servers["stage0-0"].leave()
        run.kill("stage0-0")

    outcome = play([2], leave)
    assert outcome.verdict == "right" and recorded(outcome) == [1, 2, 3]
    assert set(outcome.states) == {"stage0-1"}
