"""Whole swarms on virtual time: exactly once, equal replicas, plain failures."""

import asyncio
import contextlib
import logging

import numpy as np
import pytest

from swarm_jax.core.ledger import Audit
from swarm_jax.errors import ConfigError, Diverged, PeerLost, PeerTimeout
from swarm_jax.net.local import LocalNetwork
from swarm_jax.net.protocols import Message
from swarm_jax.roles.compute import Forward
from swarm_jax.sim.clock import run_virtual


async def final_states(swarm):
    """State of each peer that is at the last step, by peer id."""
    return {
        peer: await swarm.computes[peer].state()
        for peer, server in swarm.servers.items()
        if server.state.step == swarm.config.steps
    }


def train(swarm, disturb=None):
    """Runs a swarm to its end; returns its totals and the peers' final states."""

    async def main():
        disturbance = asyncio.ensure_future(disturb(swarm)) if disturb else None
        totals = await swarm.run()
        if disturbance:
            await disturbance
        return totals, await final_states(swarm)

    return run_virtual(main())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def assert_exact(swarm, totals):
    expected = swarm.config.microbatches_per_step * swarm.config.steps
    assert totals.microbatches == Audit(expected, expected, 0, 0)
    for record in swarm.steps:
        assert record["microbatches_counted_once"] == record["microbatches_expected"]


def assert_close(states, reference):
    """Every replica has the reference's state, but for the order of additions."""
    for peer, state in states.items():
        expected = next(s for p, s in reference.items() if p[:6] == peer[:6])
        for ours, theirs in zip(state, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


def test_every_microbatch_counts_once_and_replicas_are_equal(config, make_swarm):
    swarm = make_swarm(config, [2, 3, 1])
    totals, states = train(swarm)
    assert_exact(swarm, totals)
    assert len(swarm.steps) == config.steps and len(states) == 6
    for stage in range(3):
        replicas = [s for p, s in states.items() if p.startswith(f"stage{stage}")]
        for replica in replicas[1:]:
            for ours, theirs in zip(replica, replicas[0], strict=True):
                assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("every_steps", [0, 2])
def test_with_delayed_updates_all_steps_take_as_long(config, make_swarm, every_steps):
    """What was fed before the step began is part of it; a validation is not."""
    config.swarm.delayed_updates = True
    config.validation.every_steps = every_steps
    swarm = make_swarm(config, [1, 1, 1])
    train(swarm)
    took_s = [record["step_s"] for record in swarm.steps][1:]
    assert max(took_s) < 1.5 * min(took_s)


def test_all_peers_of_a_stage_take_their_share(config, make_swarm):
    swarm = make_swarm(config, [1, 2, 1])
    train(swarm)
    for peer in ("stage1-0", "stage1-1"):
        counted = sum(r["microbatches_counted"] for r in swarm.peer_steps[peer])
        assert counted >= config.steps * config.microbatches_per_step / 4


@pytest.mark.parametrize("victim", ["stage0-0", "stage1-0", "stage2-0"])
def test_a_killed_peer_changes_nothing(config, make_swarm, victim):
    _, reference = train(make_swarm(config, [2, 2, 2]))

    async def kill_in_the_middle_of_a_step(swarm):
        state = swarm.servers[victim].state
        await until(lambda: state.step == 2 and len(state.ledger) == 1)
        await swarm.kill(victim)

    swarm = make_swarm(config, [2, 2, 2])
    totals, states = train(swarm, kill_in_the_middle_of_a_step)
    assert_exact(swarm, totals)
    assert victim not in states and len(states) == 5
    assert_close(states, reference)


def test_only_the_stages_that_lost_a_microbatch_count_it_again(config, make_swarm):
    async def kill(swarm):
        upstream, victim = (
            swarm.servers[peer].state for peer in ("stage0-0", "stage1-0")
        )
        await until(lambda: upstream.ledger.counted & victim.ledger.counted)
        await swarm.kill("stage1-0")

    swarm = make_swarm(config, [1, 2, 1])
    totals, _ = train(swarm, kill)
    assert_exact(swarm, totals)
    assert totals.answered > config.steps * config.microbatches_per_step


def test_a_frozen_peer_is_left_and_does_no_harm_when_it_wakes(config, make_swarm):
    async def freeze(swarm):
        state = swarm.servers["stage1-0"].state
        await until(lambda: state.step == 1 and len(state.ledger) == 1)
        swarm.network.freeze("stage1-0")
        await asyncio.sleep(6.0)
        swarm.network.thaw("stage1-0")

    swarm = make_swarm(config, [1, 2, 1])
    totals, _ = train(swarm, freeze)
    assert_exact(swarm, totals)


def test_a_stage_without_a_peer_is_named_and_the_run_goes_on(
    config, make_swarm, caplog
):
    caplog.set_level(logging.WARNING)

    async def join_late(swarm):
        await asyncio.sleep(25.0)
        lines = [r.message for r in caplog.records if "Waiting" in r.message]
        assert len(lines) >= 3, "said at once, then every ten seconds"
        assert "stage 1: no live peer" in lines[-1]
        assert "start a peer of stage 1" in lines[-1]
        assert "Waiting" in swarm.seconds[-1]["waiting"]
        swarm.start_peer(1)

    swarm = make_swarm(config, [1, 0, 1])
    totals, _ = train(swarm, join_late)
    assert_exact(swarm, totals)
    assert swarm.seconds[-1]["waiting"] is None


@pytest.mark.parametrize("peers", [[1, 1, 1], [2, 2, 2]])
def test_a_stage_that_dies_in_the_middle_of_a_step_is_named(config, make_swarm, peers):
    async def main():
        swarm = make_swarm(config, peers)
        training = asyncio.ensure_future(swarm.run())
        await until(lambda: "stage1-0" in swarm.servers)
        state = swarm.servers["stage1-0"].state
        await until(lambda: state.step == 2 and len(state.ledger) > 0)
        for replica in range(peers[1]):
            await swarm.kill(f"stage1-{replica}")
        died_s = asyncio.get_running_loop().time()
        await until(lambda: "stage 1" in (swarm.seconds[-1]["waiting"] or ""))
        named_s = asyncio.get_running_loop().time()
        training.cancel()
        await asyncio.wait([training])
        return named_s - died_s

    assert run_virtual(main()) < 10.0


@pytest.mark.parametrize(
    ("peers", "reached", "killed"),
    [
        ([1, 1, 2], "stage2-0", "stage2-1"),
        ([1, 1, 2], "stage2-1", "stage2-0"),
        ([1, 2, 1], "stage1-0", None),
        ([1, 2, 1], "stage1-0", "stage1-1"),
    ],
)
def test_a_commit_that_reaches_one_slow_peer_is_exact(
    config, make_swarm, peers, reached, killed
):
    """The trainer's links break during a commit; one peer got it, and is slow."""
    _, reference = train(make_swarm(config, peers))

    async def break_links(swarm):
        await until(lambda: swarm.network.find("trainer") is not None)
        calls = swarm.network.find("trainer")
        original, broken = calls.call, set()

        async def call(peer, message, *, timeout_s):
            header = message.header
            is_commit = header["op"] == "commit" and header["step"] == 2
            if is_commit and peer not in broken:
                broken.add(peer)
                if peer == reached:
                    with contextlib.suppress(PeerTimeout):
                        await original(peer, message, timeout_s=0.05)
                if peer == killed:
                    await swarm.kill(peer)
                raise PeerLost(peer, "connection reset")
            return await original(peer, message, timeout_s=timeout_s)

        calls.call = call

    slow = make_swarm(config, peers, lambda name: 1.5 if name == "apply" else 0.01)
    totals, states = train(slow, break_links)
    assert_exact(slow, totals)
    assert_close(states, reference)


def test_a_model_that_diverges_in_the_last_update_stops_at_validation(
    config, make_swarm
):
    async def diverge(swarm):
        state = swarm.servers["stage2-0"].state
        await until(lambda: state.step == config.steps)
        relaying = swarm.servers["stage2-0"]._relaying
        relaying._compute = _BadLoss(relaying._compute)

    with pytest.raises(Diverged, match=f"Validation after step {config.steps}"):
        train(make_swarm(config, [1, 1, 1]), diverge)


def test_a_trainer_that_comes_back_with_its_old_name_leads_again(config, make_swarm):
    async def main():
        swarm = make_swarm(config, [1, 1, 1])
        for stage in range(3):
            swarm.start_peer(stage)
        first = asyncio.ensure_future(swarm.make_trainer("trainer").run())
        await until(lambda: swarm.servers["stage0-0"].state.step == 3)
        swarm.network.kill("trainer")
        first.cancel()
        await asyncio.wait([first])
        await asyncio.sleep(2 * config.tuning.lease_s)
        swarm.network.forget("trainer")
        return await swarm.make_trainer("trainer").run()

    totals = run_virtual(main())
    assert totals.steps == config.steps - 3 and totals.microbatches.exact


@pytest.mark.parametrize("op", ["collect", "prepare", "commit"])
def test_a_malformed_answer_does_not_end_the_trainer(config, make_swarm, op):
    async def lie(swarm):
        server = swarm.servers["stage1-0"]
        handle, lies = server.handle, iter([{"status": "ok"}, {"status": "old_round"}])

        async def lying(sender, message):
            if message.header["op"] == op and (header := next(lies, None)):
                return Message(header)
            return await handle(sender, message)

        server.handle = lying

    swarm = make_swarm(config, [1, 1, 1])
    totals, _ = train(swarm, lie)
    assert_exact(swarm, totals)


def test_a_late_peer_takes_the_state_of_its_stage(config, make_swarm):
    config.tuning.directory_refresh_s = 0.05

    async def join(swarm):
        await until(lambda: swarm.servers["stage1-0"].state.step == 2)
        swarm.start_peer(1)

    swarm = make_swarm(config, [1, 1, 1])
    totals, states = train(swarm, join)
    assert_exact(swarm, totals)
    for ours, theirs in zip(states["stage1-1"], states["stage1-0"], strict=True):
        assert ours.tobytes() == theirs.tobytes()
    counted = [r["microbatches_counted"] for r in swarm.peer_steps["stage1-1"]]
    assert sum(counted) > 0


def test_another_experiment_under_the_same_name_is_refused(config, make_swarm):
    other = make_swarm(config, [1, 1, 1])
    network = LocalNetwork()

    async def main():
        first = make_swarm(config, [1, 1, 1], network=network)
        training = asyncio.ensure_future(first.run())
        await asyncio.sleep(0.1)
        other.config.model.ffn_dim = 32
        second = make_swarm(other.config, [0, 0, 0], network=network)
        with pytest.raises(ConfigError, match=r"model.ffn_dim \(here 32, there 16\)"):
            await second.make_trainer("trainer2").run()
        await training

    run_virtual(main())


def test_an_update_slower_than_the_leaders_patience_is_made_once(config, make_swarm):
    _, reference = train(make_swarm(config, [1, 2, 1]))

    def duration_s(operation):
        patience_s = config.tuning.control_timeout_s + config.tuning.relay_timeout_s
        return 2.5 * patience_s if operation == "apply" else 0.01

    swarm = make_swarm(config, [1, 2, 1], duration_s)
    totals, states = train(swarm)
    assert_exact(swarm, totals)
    assert_close(states, reference)


def test_a_server_whose_device_fails_in_an_update_ends(config, make_swarm):
    class Failing:
        def __init__(self, compute):
            self._compute = compute

        def __getattr__(self, name):
            return getattr(self._compute, name)

        async def apply(self, gradient_norm):
            raise RuntimeError("device lost")

    async def fail(swarm):
        state = swarm.servers["stage1-0"].state
        await until(lambda: state.step == 2)
        server = swarm.servers["stage1-0"]
        server._control._compute = Failing(server._control._compute)
        with pytest.raises(RuntimeError, match="device lost"):
            await asyncio.shield(server._changes.broken)

    swarm = make_swarm(config, [1, 2, 1])
    totals, states = train(swarm, fail)
    assert_exact(swarm, totals)
    assert "stage1-0" not in states


class _BadLoss:
    """A device whose validation loss is infinite."""

    def __init__(self, compute):
        self._compute = compute

    def __getattr__(self, name):
        return getattr(self._compute, name)

    async def loss(self, x, targets, *, order):
        return float("inf")


class _Broken:
    """A device whose forward pass gives non-finite values for one microbatch."""

    def __init__(self, compute, bad_tokens):
        self._compute = compute
        self._bad_tokens = bad_tokens

    def __getattr__(self, name):
        return getattr(self._compute, name)

    async def forward(self, x, **kwargs):
        if np.array_equal(x[0], self._bad_tokens):
            return Forward([], None, False, 0.0)
        return await self._compute.forward(x, **kwargs)


def break_peers(swarm, peers, *, step, index):
    bad = swarm.data.microbatch(step, index).inputs
    for peer in peers:
        compute = _Broken(swarm.computes[peer], bad)
        swarm.servers[peer]._relaying._compute = compute


def test_non_finite_values_on_one_peer_are_retried_elsewhere(config, make_swarm):
    async def break_one(swarm):
        break_peers(swarm, ["stage0-0"], step=1, index=0)

    swarm = make_swarm(config, [2, 1, 1])
    totals, states = train(swarm, break_one)
    assert_exact(swarm, totals)
    assert len(states) == 4


def test_a_diverged_model_stops_the_run_and_bans_nobody(config, make_swarm, caplog):
    async def break_both(swarm):
        break_peers(swarm, ["stage0-0", "stage0-1"], step=1, index=3)

    with pytest.raises(Diverged, match=r"step 1: microbatch 3 .* in stage 0"):
        train(make_swarm(config, [2, 1, 1]), break_both)
    assert "failed, trying another" not in caplog.text


def test_a_diverged_step_can_be_skipped_and_is_counted(config, make_swarm):
    config.swarm.on_nonfinite = "skip_step"

    async def break_both(swarm):
        break_peers(swarm, ["stage0-0", "stage0-1"], step=1, index=3)

    swarm = make_swarm(config, [2, 1, 1])
    totals, states = train(swarm, break_both)
    assert totals.skipped_steps == 1 and totals.steps == config.steps
    assert totals.microbatches.exact
    assert [r.get("skipped", False) for r in swarm.steps] == [i == 1 for i in range(6)]
    assert len(states) == 4
