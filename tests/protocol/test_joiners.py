"""Peers that join when the others are gone, restarted, skipping, or told to leave."""

import asyncio
from dataclasses import replace

from swarm_jax.core.ids import Round
from swarm_jax.core.reports import JOINING, OFFLINE, ONLINE
from swarm_jax.roles.messages import FetchChunk, RestartRun


def slow_chunks(run, peer, seconds):
    """The chunks that ``peer`` gives take so long."""
    server = run.swarm.servers[peer]
    handle = type(server).handle

    async def slow(sender, message):
        if message.header["op"] == FetchChunk.op:
            await asyncio.sleep(seconds)
        return await handle(server, sender, message)

    server.handle = slow


def test_two_joiners_are_no_donors_for_each_other(play):
    """The only peer of stage 1 is gone; two that join see each other, and nobody else.

    They say that they have nothing, so that the run can start again.
    """

    async def lose(run):
        trainer = run.swarm.make_trainer("trainer-a", restart_if_lost=lambda: True)
        run.trainers["trainer-a"] = asyncio.ensure_future(trainer.run())
        await run.until(lambda: run.state("stage1-0").step == 2)
        run.kill("stage1-0")
        run.swarm.start_peer(1)
        run.swarm.start_peer(1)
        await run.until(lambda: run.state("stage1-2").state == JOINING)

    outcome = play([1, 1], lose, trainers=0, lost_stage_s=3.0)
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-0", "stage1-1", "stage1-2"}


def test_a_joiner_whose_only_donor_lies_asks_nobody_for_ever(play, caplog):
    """stage1-0 gives wrong chunks. The joiner says so and goes on without a state."""

    async def join(run):
        server = run.swarm.servers["stage1-0"]
        handle = server.handle

        async def lying(sender, message):
            reply = await handle(sender, message)
            if message.header["op"] == FetchChunk.op:
                return replace(reply, arrays=[reply.arrays[0] ^ 1])
            return reply

        server.handle = lying
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.swarm.start_peer(1)
        await run.happens("answered", FetchChunk.op, "stage1-0")

    outcome = play([1, 1], join, steps=20)
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-0", "stage1-0"}
    assert caplog.text.count("sent a wrong chunk") <= 2
    assert "nobody else is there to fetch the stage's state from" in caplog.text


def test_a_joiner_applies_nothing_of_an_older_generation(play):
    """stage1-1 keeps gradients and commits up to step 5, and is cut off.

    The run starts again; the joiner's download breaks off, and the next one gives it a
    state of the new run, before step 5.
    """

    async def restart(run):
        lost = asyncio.Event()
        trainer = run.swarm.make_trainer("trainer-a", restart_if_lost=lost.is_set)
        run.trainers["trainer-a"] = asyncio.ensure_future(trainer.run())
        await run.until(lambda: run.state("stage1-0").step == 1)
        slow_chunks(run, "stage1-0", 100.0)
        run.swarm.start_peer(1)
        await run.until(lambda: run.state("stage1-0").step == 6)
        run.cut("trainer-a", "stage1-1")
        lost.set()
        run.kill("stage0-0")
        run.swarm.start_peer(0)
        await run.until(lambda: run.state("stage1-0").position[:2] == (1, 1))
        run.cut("stage1-0", "stage1-1", silent=False)
        slow_chunks(run, "stage1-0", 0.0)
        run.heal("stage1-0", "stage1-1")
        await run.until(lambda: run.state("stage1-1").state == ONLINE)
        assert run.state("stage1-1").step <= run.state("stage1-0").step
        run.heal("trainer-a", "stage1-1")

    outcome = play([1, 1], restart, trainers=0, steps=8, lost_stage_s=3.0)
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-1", "stage1-0", "stage1-1"}


def test_a_peer_that_is_told_to_leave_gives_up_its_download(play):
    """stage1-1 is told to leave while the state that it fetched is being loaded."""

    async def leave(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.swarm.start_peer(1)
        joiner = run.swarm.servers["stage1-1"]
        run.slow_s["stage1-1", "load_state"] = 1.0
        await run.happens("answered", FetchChunk.op, "stage1-0")
        await asyncio.sleep(0.5)
        assert joiner.state.state == JOINING
        assert await joiner.drain(10.0)
        await asyncio.sleep(3.0)
        assert joiner.state.state == OFFLINE
        assert joiner._joining._task is None

    assert play([1, 1], leave, steps=30).verdict == "right"


def test_a_restart_ends_a_download(play):
    """stage1-1 is about to load the whole state when the run starts again."""

    async def restart(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.swarm.start_peer(1)
        joiner = run.swarm.servers["stage1-1"]
        await run.happens("answered", FetchChunk.op, "stage1-0")
        run.act(joiner._changes.run(asyncio.sleep(1.0)))
        await asyncio.sleep(0)
        request = RestartRun(round=Round(1000, "another", 0), generation=1, step=0)
        await joiner._control.restart(request)
        assert joiner.state.state == ONLINE
        await asyncio.sleep(0.1)
        assert joiner.state.generation == 1

    outcome = play([1, 1], restart, steps=10)
    assert outcome.verdict == "right"
    assert outcome.run.state("stage0-0").generation == 1


def test_a_skipped_step_reaches_joiners(play):
    """Every peer of stage 1 gets non-finite values in step 2, while stage1-1 joins.

    Without the commit of the skipped step it would have to fetch the state again.
    """

    async def diverge(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        slow_chunks(run, "stage1-0", 1.0)
        run.swarm.start_peer(1)
        compute = run.swarm.computes["stage1-0"]
        loss_backward = compute.loss_backward

        async def not_finite(*args, **kwargs):
            result = await loss_backward(*args, **kwargs | {"count": None})
            return replace(result, finite=False)

        await run.until(lambda: run.state("stage1-0").step == 2)
        compute.loss_backward = not_finite
        await run.until(lambda: run.state("stage1-0").step == 3)
        compute.loss_backward = loss_backward

    outcome = play([1, 1], diverge, steps=20, on_nonfinite="skip_step")
    assert outcome.run.swarm.steps[2]["skipped"]
    assert outcome.count("request_arrived", "manifest") == 1
    assert (
        outcome.run.state("stage1-1").lineage == outcome.run.state("stage1-0").lineage
    )


def test_a_step_that_others_have_applied_is_not_skipped(play):
    """V, and stage 1 gets non-finite values while it is given the step again."""

    async def lose_and_diverge(run):
        await run.until(lambda: run.state("stage1-1").step == 1)
        run.network.freeze("stage1-1")
        await run.happens("request_sent", "commit", "trainer-a", step=1)
        run.cut("trainer-a", "stage1-0")
        await run.until(lambda: run.state("stage0-0").step == 2)
        run.kill("stage1-0")
        compute = run.swarm.computes["stage1-1"]
        loss_backward, tries = compute.loss_backward, []

        async def not_finite(*args, **kwargs):
            tries.append(kwargs)
            if len(tries) > 4:
                return await loss_backward(*args, **kwargs)
            result = await loss_backward(*args, **kwargs | {"count": None})
            return replace(result, finite=False)

        compute.loss_backward = not_finite
        run.network.thaw("stage1-1")

    outcome = play([1, 2], lose_and_diverge, on_nonfinite="skip_step")
    assert outcome.verdict == "right"
    assert not any(record.get("skipped") for record in outcome.run.swarm.steps)


def test_who_could_not_read_the_directory_at_first_joins_later(play):
    """stage1-2 takes itself for the first; no leader can tell it: stage 0 is away."""

    async def start_blind(run):
        await run.until(lambda: run.state("stage0-0").step == 2)
        others = ["trainer-a", "stage1-0", "stage1-1"]
        run.network.partition(["stage0-0"], others, silent=True)
        peer = run.swarm.start_peer(1)
        view = run.swarm.servers[peer].view
        refresh, sees_s = view.refresh, run.now_s() + 1.0

        async def blind_at_first():
            if run.now_s() >= sees_s:
                await refresh()

        view.refresh = blind_at_first
        await run.until(lambda: run.state(peer).step == 2)
        run.network.reunite(["stage0-0"], others)

    outcome = play([1, 2], start_blind, steps=5)
    assert outcome.verdict == "right"
    assert "stage1-2" in outcome.states
