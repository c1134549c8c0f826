"""Who takes part in a step: cut off, late, stale, leaving (design, sections 5, 6)."""

import asyncio

import pytest

from swarm_jax.core import closing
from swarm_jax.net.protocols import Message
from swarm_jax.roles import preparing
from swarm_jax.roles.joining import Joining
from swarm_jax.roles.leaving import Leaving
from swarm_jax.roles.stage_control import StageControl

VOID = "is void, no result from"


def test_after_two_void_rounds_the_most_named_peer_is_left_out(rule, play, caplog):
    """X. stage1-0 and stage1-1 cannot reach each other, for good.

    Off: every all-reduce is void, for ever.
    """
    rule.off(preparing, "most_suspect", lambda *args: None)

    async def cut(run):
        run.cut("stage1-0", "stage1-1")

    outcome = play([1, 2], cut)
    assert outcome.verdict == rule.gives("right", off="not finished")
    if rule.is_on:
        assert caplog.text.count(VOID) == 2


def test_a_failed_prepare_names_whom_it_lacked(rule, play, caplog):
    """X. Of three peers two, stage1-1 and stage1-2, cannot reach each other.

    Off: an innocent is left out first, and one more round is void.
    """
    rule.off(preparing, "_lacked", lambda reply: [])

    async def cut(run):
        run.cut("stage1-1", "stage1-2")

    outcome = play([1, 3], cut)
    assert outcome.verdict == "right"
    left_out = caplog.text.count("is closed without age1-0")
    assert (left_out, caplog.text.count(VOID)) == rule.gives((0, 2), off=(1, 3))


@pytest.mark.parametrize("counted", ["a sum", "no sum"])
def test_a_peer_leaves_only_when_another_has_its_step(rule, play, counted):
    """E. stage1-1, frozen at step 1, knows nothing of step 2, where stage1-0 leaves.

    Off: the newest state of stage 1 goes with it.
    """

    async def leave_at_once(leaving):
        pass

    rule.off(Leaving, "_hand_over", leave_at_once)

    async def leave(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.network.freeze("stage1-1")
        if counted == "a sum":
            state = run.state("stage1-0")
            await run.until(lambda: state.step == 2 and state.ledger.counted)
        else:
            await run.happens("request_arrived", "relay", "stage0-0", id=[2, 0])
        asyncio.get_running_loop().call_later(5.0, run.network.thaw, "stage1-1")
        if await run.swarm.servers["stage1-0"].drain(20.0):
            await run.swarm.servers["stage1-0"].leave()
            run.kill("stage1-0")

    outcome = play([1, 2], leave)
    assert outcome.verdict == rule.gives("right", off="not finished")
    assert "stage1-0" not in outcome.states


def test_only_a_peer_at_the_same_step_takes_over(rule, play):
    """E. As above, but stage1-1 is awake: only the leader has not told it to commit.

    Off: it takes over an empty sum, and the newest state goes.
    """

    async def from_anyone(control, request, gradients):
        return Message({"status": "ok"})

    rule.off(StageControl, "_take_over", from_anyone)

    async def leave(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.cut("trainer-a", "stage1-1", silent=False)
        run.cut("stage0-0", "stage1-1", silent=False)
        await run.happens("request_arrived", "relay", "stage0-0", id=[2, 0])
        asyncio.get_running_loop().call_later(5.0, run.heal, "trainer-a", "stage1-1")
        asyncio.get_running_loop().call_later(5.0, run.heal, "stage0-0", "stage1-1")
        if await run.swarm.servers["stage1-0"].drain(20.0):
            await run.swarm.servers["stage1-0"].leave()
            run.kill("stage1-0")

    outcome = play([1, 2], leave)
    assert outcome.verdict == rule.gives("right", off="not finished")


def test_a_joiner_slower_than_a_step_catches_up(rule, play):
    """11. A download takes longer than a step: 1 s, three steps.

    Off: whenever it is over the joiner is stale, and never counts anything.
    """
    rule.off(closing, "_joiners", lambda reports: {})

    async def join(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.wires.delay("stage1-0", "stage1-1", 0.5)
        run.swarm.start_peer(1)

    outcome = play([1, 1], join, steps=16)
    assert outcome.verdict == "right"
    assert (outcome.counted_by("stage1-1") > 0) == rule.is_on


def test_a_stale_peer_frees_its_sum_and_ledger_at_once(rule, play):
    """stage1-0 freezes at step 1 with a sum, and wakes at step 3; its download is slow.

    Off: it keeps the sum until the download is over.
    """

    async def keep(joining):
        pass

    rule.off(Joining, "_free", keep)
    held = []

    async def wake_late(run):
        state = run.state("stage1-0")
        await run.until(lambda: state.step == 1 and state.ledger.counted)
        run.network.freeze("stage1-0")
        await run.until(lambda: run.state("stage1-1").step == 3)
        run.network.thaw("stage1-0")
        await run.happens("request_arrived", "chunk", "stage1-1")
        sums = await run.swarm.computes["stage1-0"].gradient_sum(1.0)
        held.append(bool(state.ledger.counted) or bool(sums[0].any()))

    outcome = play([1, 2], wake_late, steps=6)
    assert outcome.verdict == "right"
    assert held == rule.gives([False], off=[True])


def test_a_joiner_fetches_the_state_once(rule, play):
    """stage1-1 starts when the leader has just read the directory; steps are short.

    Off: it has the state before the leader has heard of it, misses the steps until
    then, and has to fetch it again.
    """

    async def at_once(joining):
        pass

    rule.off(Joining, "_until_known", at_once)

    async def join(run):
        await run.until(lambda: run.state("stage1-0").step == 2)
        run.swarm.start_peer(1)

    outcome = play([1, 1], join, steps=16, directory_refresh_s=1.0)
    assert outcome.verdict == "right"
    fetches = outcome.count("request_arrived", "manifest")
    assert fetches == rule.gives(1, off=2)
    assert outcome.counted_by("stage1-1") > 0
