"""Delayed updates: a step's microbatches run while the one before is closed."""

import asyncio
from collections import defaultdict

import pytest

from swarm_jax.core import closing
from swarm_jax.core.reports import JOINING
from swarm_jax.core.stage_state import StageState
from swarm_jax.roles.leader import Leader
from swarm_jax.roles.messages import FetchChunk
from swarm_jax.roles.reducing import Reducing
from swarm_jax.roles.relaying import Relaying

SLOW_S = 3.0


def counted_early(run, peer):
    return run.state(peer).early.counted


@pytest.mark.parametrize("peers", [[1], [2, 1], [1, 3, 2]])
@pytest.mark.parametrize("tied_head", [False, True])
def test_every_peer_ends_as_plain_training(play, peers, tied_head):
    outcome = play(peers, steps=5, delayed_updates=True, tied_head=tied_head)
    assert outcome.verdict == "right"
    assert outcome.count("answered", "drop") == outcome.count("answered", "resync") == 0


def test_without_them_the_result_is_another(play, monkeypatch):
    """The verdict would show gradients at the wrong parameters."""
    monkeypatch.setattr(StageState, "age", lambda state, id_, training=True: 0)
    outcome = play([1, 1], delayed_updates=True, deadline_s=5.0)
    assert outcome.verdict == "wrong parameters"


@pytest.mark.parametrize("delayed_updates", [False, True])
def test_a_slow_all_reduce_takes_its_time_beside_the_microbatches(
    play, monkeypatch, delayed_updates
):
    """A step takes the larger of what it takes to feed and to reduce; or their sum."""
    mean = Reducing.mean

    async def slow(reducing, request, contribution):
        await asyncio.sleep(SLOW_S)
        return await mean(reducing, request, contribution)

    monkeypatch.setattr(Reducing, "mean", slow)
    steps, microbatch_s = 6, 0.6
    feed_s = 8 * microbatch_s / 2
    outcome = play(
        [2],
        steps=steps,
        delayed_updates=delayed_updates,
        durations_s={"backward": microbatch_s},
    )
    assert outcome.verdict == "right"
    alone_s = feed_s + steps * SLOW_S
    expected_s = alone_s if delayed_updates else alone_s + (steps - 1) * feed_s
    # A device first ends the early microbatch that it is at.
    waiting_s = steps * microbatch_s if delayed_updates else 0.0
    assert expected_s < outcome.ended_s < expected_s + waiting_s + 2.5


class Sent:
    """A schedule that notes the microbatches which the trainer sends to train on."""

    def __init__(self, schedule=None):
        self.rounds = defaultdict(set)
        self._schedule = schedule

    async def __call__(self, run):
        run.wires.listeners.append(self._hear)
        if self._schedule is not None:
            await self._schedule(run)

    def _hear(self, event):
        if (event.kind, event.op) == ("request_sent", "relay"):
            if event.header["training"] and event.header["stage"] == 0:
                self.rounds[tuple(event.header["id"])].add(tuple(event.header["round"]))

    @property
    def again(self):
        """Those that were sent in more than one round."""
        return {id_ for id_, rounds in self.rounds.items() if len(rounds) > 1}


def test_each_microbatch_is_sent_in_one_round_and_none_beyond_the_last_step(play):
    sent = Sent()
    assert play([1, 2], sent, delayed_updates=True, steps=3).verdict == "right"
    assert set(sent.rounds) == {
        (step, index) for step in range(3) for index in range(8)
    }
    assert not sent.again


def test_a_microbatch_whose_backward_meets_the_update_is_counted_after_it(rule, play):
    """The update takes long, and microbatches of the next step wait for the device.

    Off: each is given up, and fed again when the step is closed.
    """
    rule.off(StageState, "may_count_soon", lambda state, id_, round_: False)

    async def updates_take_long(run):
        run.at(
            "request_arrived",
            "commit",
            "stage0-0",
            lambda: run.slow_s.update({("stage0-0", "apply"): 0.2}),
        )

    sent = Sent(updates_take_long)
    outcome = play([1], sent, delayed_updates=True, steps=3)
    assert outcome.verdict == "right"
    assert bool(sent.again) == rule.gives(False, off=True)


def test_a_step_is_replayed_from_the_parameters_of_two_updates_before(rule, play):
    """stage1-0 alone has prepared step 1. Stage 0 commits, and gets more of step 2.

    Then stage1-0, which has not committed yet, is killed. stage1-1, frozen meanwhile,
    wakes at step 1, whose microbatches must be run again.
    Off: the first of these takes what a replay needs, as without delayed updates.
    """
    run_relay = Relaying.run

    async def forget(relaying, relay, arrays):
        state = relaying._state
        if relay.id.step == state.step and state.can_replay:
            state.can_replay = False
            relaying._compute.forget_previous()
        return await run_relay(relaying, relay, arrays)

    rule.off(Relaying, "run", forget)

    arrived = []

    async def schedule(run):
        await run.until(lambda: run.state("stage1-1").step == 1)
        run.network.freeze("stage1-1")
        handle = run.swarm.servers["stage1-0"].handle

        async def commit_late(sender, message):
            if message.header["op"] == "commit":
                await asyncio.sleep(60.0)
            return await handle(sender, message)

        run.swarm.servers["stage1-0"].handle = commit_late
        await run.until(lambda: run.state("stage0-0").step == 2)
        await run.happens("answered", "relay", "stage0-0", nth=4)
        arrived.append((run.state("stage0-0").step, run.state("stage1-0").step))
        run.kill("stage1-0")
        run.network.thaw("stage1-1")

    outcome = play(
        [1, 2],
        schedule,
        delayed_updates=True,
        steps=4,
        microbatches_in_flight=2,
        durations_s={"backward": 0.2},
    )
    assert outcome.verdict == rule.gives("right", off="not finished")
    assert arrived == [(2, 1)]


def test_an_end_of_a_tied_head_gets_a_step_again(play):
    async def schedule(run):
        await run.until(lambda: run.state("stage2-1").step == 1)
        run.network.freeze("stage2-1")
        await run.happens("request_arrived", "commit", "stage2-0", step=1)
        run.kill("stage2-0")
        await run.until(lambda: run.state("stage0-0").step == 2)
        run.network.thaw("stage2-1")

    outcome = play([1, 1, 2], schedule, delayed_updates=True, tied_head=True, steps=4)
    assert outcome.verdict == "right"
    assert outcome.count("answered", "tied") >= 1


def test_an_early_sum_goes_with_its_peer_and_is_fed_again(play):
    """stage1-0 leaves with microbatches of the next step in its early sum."""
    lost = []

    async def leave(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        await run.until(lambda: len(counted_early(run, "stage1-0")) >= 1)
        server = run.swarm.servers["stage1-0"]
        run.network.freeze("trainer-a")
        assert await server.drain(10.0)
        lost.append(counted_early(run, "stage1-0"))
        run.network.thaw("trainer-a")
        run.kill("stage1-0")

    outcome = play([1, 2], leave, delayed_updates=True, steps=4)
    assert outcome.verdict == "right"


def test_a_joiner_gets_the_parameters_before_the_last_update(play):
    """It joins during the download of a step, and is then the only one of its stage."""

    async def only_the_joiner_is_left(run):
        await run.until(lambda: run.state("stage0-0").step == 1)
        handle = run.swarm.servers["stage0-0"].handle

        async def slow(sender, message):
            if message.header["op"] == FetchChunk.op:
                await run.until(lambda: run.state("stage0-0").step >= 3)
            return await handle(sender, message)

        run.swarm.servers["stage0-0"].handle = slow
        run.swarm.start_peer(0)
        await run.happens("allreduce_joined", "allreduce", "stage0-1")
        assert run.state("stage0-1").state == JOINING
        await run.until(lambda: run.state("stage0-1").step >= 3)
        run.kill("stage0-0")

    outcome = play([1, 1], only_the_joiner_is_left, delayed_updates=True, steps=8)
    assert outcome.verdict == "right"
    assert outcome.counted_by("stage0-1") > 0


@pytest.mark.parametrize("event", ["request_arrived", "answered"])
@pytest.mark.parametrize("op", ["prepare", "commit", "collect"])
def test_another_trainer_goes_on_with_what_was_counted_early(play, event, op):
    async def the_trainer_dies(run):
        await run.happens(event, op, "stage1-0", nth=2)
        run.kill_trainer()
        run.start_trainer("trainer-b")

    outcome = play([1, 2], the_trainer_dies, delayed_updates=True, steps=4)
    assert outcome.verdict == "right"


def test_a_skipped_step_leaves_the_early_gradients_right(play, monkeypatch):
    """Step 1 is skipped: what was counted of step 2 is at the parameters of both."""
    mean = Reducing.mean

    async def not_finite(reducing, request, contribution):
        means = await mean(reducing, request, contribution)
        return [m * float("nan") for m in means] if request.step == 1 else means

    monkeypatch.setattr(Reducing, "mean", not_finite)
    outcome = play(
        [1, 2],
        delayed_updates=True,
        steps=4,
        on_nonfinite="skip_step",
        skipped=1,
    )
    assert outcome.verdict == "right"
    assert [r.get("skipped", False) for r in outcome.run.swarm.steps][1]


def test_validation_waits_until_all_have_the_step(play, monkeypatch):
    """It is at one step's parameters everywhere, though more is fed all the time."""
    positions = []
    validate = Leader._validate

    async def watched(leader, reports):
        positions.append({report.step for report in reports})
        await validate(leader, reports)

    monkeypatch.setattr(Leader, "_validate", watched)

    async def every_step(run):
        run.config.validation.every_steps = 1

    outcome = play([1, 2], every_step, delayed_updates=True, steps=4)
    assert outcome.verdict == "right"
    assert positions == [{1}, {2}, {3}, {4}]
    monkeypatch.setattr(closing._Step, "_ahead", lambda step, members: None)
    one_by_one = play([1, 2], every_step, delayed_updates=True, steps=4)
    losses, expected = (
        [record["validation_loss"] for record in run.swarm.steps]
        for run in (outcome.run, one_by_one.run)
    )
    assert losses == expected and len(set(losses)) == 4
