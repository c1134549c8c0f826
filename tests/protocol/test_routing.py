"""Budgets, bans and masks: who gets a microbatch, and who is blamed (section 4)."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from swarm_jax.core.router import Router
from swarm_jax.errors import PeerLost
from swarm_jax.net import local_allreduce, local_calls
from swarm_jax.roles import feeding
from swarm_jax.roles.messages import Relay, Status
from swarm_jax.roles.relay import Answer, NextStage, NoRoute
from swarm_jax.roles.relaying import Relaying

INNOCENT = "stage 1 peer age1-1 failed, trying another"
CUT_OFF = ["stage0-1"], ["stage1-0", "stage1-1"]


def blames_all(stage, *args, init=NextStage.__init__):
    """Ablation of b: every budget is a full one."""
    init(stage, *args)
    stage._full_budget_s = 0.0


async def lose_a_sum(run, counted=2):
    """stage1-0 dies with what it has counted; stage 0 has counted that, too."""
    await run.until(lambda: len(run.state("stage1-0").ledger) == counted)
    run.kill("stage1-0")


def test_a_mask_is_for_depth_too(rule, play):
    """M. stage1-0 dies with what it has counted; stage 0 has counted that, too.

    Off: stage 0 answers from memory, and stage 1 never gets it.
    """
    run_relay = Relaying._run

    async def from_memory(relaying, relay, arrays):
        if relay.training and relaying._state.has_counted(relay.id):
            await asyncio.sleep(0.1)
            return relaying._reply(relay, Answer([], 0.0, []), [], 0.1, 0.0)
        return await run_relay(relaying, relay, arrays)

    rule.off(Relaying, "_run", from_memory)
    outcome = play([1, 2], lose_a_sum, deadline_s=20.0)
    assert outcome.verdict == rule.gives("right", off="not finished")


def test_only_the_stages_that_lack_a_microbatch_count_it(rule, play):
    """The same, with two peers in stage 0.

    Off: what passes through the other one is counted there again, and must be dropped.
    """

    def by_all(**fields):
        return Relay(**fields | {"counted_by": frozenset({0, 1})})

    rule.off(feeding, "Relay", by_all)
    outcome = play([2, 2], partial(lose_a_sum, counted=4))
    assert outcome.verdict == "right"
    assert outcome.count("request_sent", "drop") == rule.gives(0, off=1)


def test_busy_is_no_fault(rule, play):
    """Peers take four of the eight microbatches at a time.

    Off: they are banned for that, 5 s the first time.
    """
    status = NextStage._status

    def at_fault(stage, peer, relay, header, nonfinite):
        if header.get("status") == Status.BUSY:
            raise PeerLost(peer, "busy")
        return status(stage, peer, relay, header, nonfinite)

    rule.off(NextStage, "_status", at_fault)
    outcome = play([2, 1], max_queue=2, ban_s=5.0)
    assert outcome.verdict == "right"
    assert (outcome.ended_s < 2.5) == rule.is_on


def test_a_silent_peer_is_left_after_three_heartbeats(rule, play):
    """stage1-0 freezes in the middle of a step.

    Off: its microbatches wait to the end of their budget, 20 s.
    """
    rule.off(local_calls, "SILENT_HEARTBEATS", 1000)
    rule.off(local_allreduce, "SILENT_HEARTBEATS", 1000)

    async def freeze(run):
        await run.until(lambda: len(run.state("stage1-0").ledger) == 2)
        run.network.freeze("stage1-0")

    outcome = play([1, 2], freeze)
    assert outcome.verdict == "right"
    assert (outcome.ended_s < 10.0) == rule.is_on


def whoever(router, tokens, now_s, exclude=(), pick=Router.pick):
    """Ablation of "not S": where all are banned, bans are ignored."""
    chosen = pick(router, tokens, now_s, exclude)
    return chosen or pick(router, tokens, float("inf"), exclude)


async def to_the_end(stage, relay, arrays, send=NextStage.send):
    """Ablation of Y: looks for a peer as long as there is a budget."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + relay.budget_s
    while True:
        left_s = max(0.0, deadline_s - loop.time())
        try:
            return await send(stage, replace(relay, budget_s=left_s), arrays)
        except NoRoute:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("off", "verdict", "least_s", "sent"),
    [
        ("", "right", 3.0, 6),
        ("Y", "right", 14.0, 8),
        ("S", "right", 1.0, 16),
        ("SY", "not finished", 29.5, 1470),
    ],
)
def test_who_finds_no_next_peer_says_so_and_bans_are_never_ignored(
    play, monkeypatch, off, verdict, least_s, sent
):
    """Y, not S. stage0-1 reaches nobody in stage 1, for good.

    Without NO_ROUTE (Y) its microbatches wait to the end of their budget. Who uses
    banned peers when there are no others (S) sends in vain; only with the answer
    NO_ROUTE is that all: without both it tries for ever, and no step is closed.
    """
    if "S" in off:
        monkeypatch.setattr(Router, "pick", whoever)
    if "Y" in off:
        monkeypatch.setattr(NextStage, "send", to_the_end)

    async def cut(run):
        run.network.partition(*CUT_OFF, silent=False)

    outcome = play([2, 2], cut, relay_timeout_s=8.0, deadline_s=30.0)
    assert outcome.verdict == verdict
    assert least_s <= outcome.ended_s < least_s + 1.0
    assert outcome.count("request_sent", "relay", "stage0-1") == sent


def test_a_deadline_that_ran_out_bans_only_who_had_a_full_budget(rule, play, caplog):
    """b. stage1-0 is stuck, and dies after 12 s; its microbatches go to stage1-1.

    That is slow for once. Off: it is banned, although it had 7 s left of 20.
    """

    async def die_late(run):
        run.slow_s["stage1-0", "backward"] = 100.0
        await asyncio.sleep(12.0)
        run.slow_s["stage1-1", "backward"] = 10.0
        run.kill("stage1-0")

    rule.off(NextStage, "__init__", blames_all)
    outcome = play([1, 2], die_late)
    assert outcome.verdict == "right"
    assert (INNOCENT in caplog.text) == (not rule.is_on)


@pytest.mark.parametrize(
    ("off", "sent_late", "banned"),
    [
        ("", False, False),
        ("hop", True, False),
        ("blame", False, False),
        ("hop, blame", True, True),
    ],
)
def test_nothing_is_sent_with_less_budget_than_one_hop_needs(
    play, monkeypatch, caplog, off, sent_late, banned
):
    """b. stage1-0 is stuck, and dies when its microbatches have 1.5 s left.

    Off: they go to stage1-1, which cannot make it in that time. It is not banned for
    that, if only those with a full budget are; without both rules it is.
    """
    if "blame" in off:
        monkeypatch.setattr(NextStage, "__init__", blames_all)
    budgets_s = []

    async def die_late(run):
        run.slow_s["stage1-0", "backward"] = 100.0
        await asyncio.sleep(19.0)
        run.slow_s["stage1-1", "backward"] = 2.0
        run.wires.listeners.append(note)
        run.kill("stage1-0")

    def note(event):
        if (event.kind, event.op, event.other) == ("request_sent", "relay", "stage1-1"):
            budgets_s.append(event.header["budget_s"])

    hop_budget_s = 0.001 if "hop" in off else 2.0
    outcome = play([1, 2], die_late, hop_budget_s=hop_budget_s)
    assert outcome.verdict == "right"
    assert (min(budgets_s) < 2.0, INNOCENT in caplog.text) == (sent_late, banned)
