"""Peers that join, fall behind, leave: whole swarms on virtual time."""

import asyncio
import logging

import numpy as np
import pytest

from swarm_jax.core.ledger import Audit
from swarm_jax.net.protocols import Message
from swarm_jax.roles import snapshots
from swarm_jax.roles.messages import FetchManifest, to_header
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.modelled import ModelledCompute, ModelledTokens, modelled_config
from swarm_jax.sim.swarm import SimulatedSwarm


async def until(condition):
    async with asyncio.timeout(500.0):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def config():
    """Steps take a tenth of a second: the directory must keep up with them."""
    config = modelled_config(num_stages=3, steps=6)
    config.tuning.directory_refresh_s = 0.05
    return config


@pytest.fixture
def make_swarm():
    """``make_swarm(config, peers_per_stage)``: devices whose arithmetic is exact."""

    def make(config, peers_per_stage):
        return SimulatedSwarm(
            config,
            data=ModelledTokens(config),
            make_compute=lambda stage: ModelledCompute(config, stage),
            peers_per_stage=peers_per_stage,
        )

    return make


def train(swarm, disturb=None):
    async def main():
        disturbance = asyncio.ensure_future(disturb(swarm)) if disturb else None
        async with asyncio.timeout(500.0):
            totals = await swarm.run()
        if disturbance:
            await disturbance
        states = {
            peer: await swarm.computes[peer].state()
            for peer, server in swarm.servers.items()
            if server.state.step == swarm.config.steps
        }
        return totals, states

    return run_virtual(main())


def assert_exact(swarm, totals, states, reference):
    """Counted once, and every replica has bit for bit the reference's state."""
    expected = swarm.config.microbatches_per_step * swarm.config.steps
    assert totals.microbatches == Audit(expected, expected, 0, 0)
    for peer, state in states.items():
        like = next(s for p, s in reference.items() if p[:6] == peer[:6])
        for ours, theirs in zip(state, like, strict=True):
            assert ours.tobytes() == theirs.tobytes()


def counted_by(swarm, peer):
    return [record["microbatches_counted"] for record in swarm.peer_steps[peer]]


@pytest.fixture
def small_chunks(monkeypatch):
    """States of some twenty chunks."""
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 2)
    monkeypatch.setattr("swarm_jax.roles.download.CHUNK_BYTES", 2)


def record(server, peer, op, seen, duration_s=0.0):
    """Notes every request of a kind: (receiver, header)."""
    handle = server.handle

    async def recording(caller, message):
        if message.header["op"] == op:
            await asyncio.sleep(duration_s)
            seen.append((peer, message.header))
        return await handle(caller, message)

    server.handle = recording


def test_a_download_longer_than_steps_catches_up(config, make_swarm, small_chunks):
    """Its state is of an early step; the gradients since then were kept."""
    _, reference = train(make_swarm(config, [1, 2, 1]))
    fetched = []

    async def join_slowly(swarm):
        await until(lambda: swarm.servers["stage1-0"].state.step == 1)
        for donor in ("stage1-0", "stage1-1"):
            slow_down(swarm.servers[donor], fetched)
        swarm.start_peer(1)

    def slow_down(server, seen):
        handle = server.handle

        async def slow(caller, message):
            if message.header["op"] == "chunk":
                await asyncio.sleep(0.05)
            if message.header["op"] == "manifest":
                seen.append(server.state.step)
            return await handle(caller, message)

        server.handle = slow

    swarm = make_swarm(config, [1, 2, 1])
    totals, states = train(swarm, join_slowly)
    assert_exact(swarm, totals, states, reference)
    joined = swarm.peer_steps["stage1-2"]
    assert max(fetched) + 1 < joined[0]["step"], "steps went by during the download"
    assert swarm.ready == {peer: 0 for peer in reference} | {
        "stage1-2": joined[0]["step"] - 1
    }
    first = next(record for record in joined if record["microbatches_counted"])
    assert first["join_to_first_microbatch_s"] > 0
    assert sum("join_to_first_microbatch_s" in record for record in joined) == 1
    assert sum(counted_by(swarm, "stage1-2")) > 0
    assert len(set(fetched)) == 1, "one download was enough"


def test_a_wrong_chunk_is_refused_and_its_donor_named(
    config, make_swarm, small_chunks, caplog
):
    _, reference = train(make_swarm(config, [1, 2, 1]))

    async def join_with_a_liar(swarm):
        await until(lambda: swarm.servers["stage1-0"].state.step == 1)
        server = swarm.servers["stage1-0"]
        handle = server.handle

        async def lying(caller, message):
            reply = await handle(caller, message)
            if message.header["op"] == "chunk":
                wrong = np.array(reply.arrays[0])
                wrong[0] ^= 1
                return Message(reply.header, [wrong])
            return reply

        server.handle = lying
        swarm.start_peer(1)

    swarm = make_swarm(config, [1, 2, 1])
    totals, states = train(swarm, join_with_a_liar)
    assert_exact(swarm, totals, states, reference)
    assert "donor stage1-0 sent a wrong chunk" in caplog.text
    assert sum(counted_by(swarm, "stage1-2")) > 0


def test_a_donor_killed_in_the_middle_costs_no_chunk(config, make_swarm, small_chunks):
    _, reference = train(make_swarm(config, [1, 2, 1]))
    chunks = []

    async def kill_a_donor(swarm):
        await until(lambda: swarm.servers["stage1-0"].state.step == 1)
        for peer in ("stage1-0", "stage1-1"):
            record(swarm.servers[peer], peer, "chunk", chunks, 0.01)
        swarm.start_peer(1)
        await until(lambda: len([p for p, _ in chunks if p == "stage1-0"]) >= 4)
        await swarm.kill("stage1-0")

    swarm = make_swarm(config, [1, 2, 1])
    totals, states = train(swarm, kill_a_donor)
    assert_exact(swarm, totals, states, reference)
    indices = [header["index"] for _, header in chunks]
    assert len(indices) <= len(set(indices)) + 4, "only what was under way came twice"


def test_a_stale_peer_frees_its_sum_at_once(config, make_swarm, small_chunks):
    async def freeze_and_thaw(swarm):
        server = swarm.servers["stage1-0"]
        await until(lambda: server.state.step == 1 and len(server.state.ledger) == 1)
        swarm.network.freeze("stage1-0")
        await until(lambda: swarm.servers["stage1-1"].state.step == 3)
        swarm.network.thaw("stage1-0")
        await until(lambda: server.state.state == "JOINING")
        await until(lambda: len(server.state.ledger) == 0)
        assert server.state.step < 3
        sums = await swarm.computes["stage1-0"].gradient_sum(1.0)
        assert not any(array.any() for array in sums)

    swarm = make_swarm(config, [1, 2, 1])
    totals, _ = train(swarm, freeze_and_thaw)
    assert totals.microbatches.exact


def test_donors_keep_a_snapshot_and_drop_it(config, make_swarm):
    async def main():
        swarm = make_swarm(config, [1, 1, 1])
        server = swarm.servers[swarm.start_peer(1)]
        fetch = Message(to_header(FetchManifest(stage=1), config.swarm_fingerprint()))
        first, second = [(await server.handle("b", fetch)).header for _ in range(2)]
        assert first == second and len(server._snapshots._kept) == 1
        await asyncio.sleep(snapshots.KEPT_S + 1)
        assert not server._snapshots._kept
        await swarm.kill("stage1-0")

    run_virtual(main())


@pytest.mark.parametrize("leaver", ["stage0-0", "stage1-0", "stage2-0"])
def test_a_peer_that_leaves_loses_nothing_and_nothing_runs_again(
    config, make_swarm, leaver
):
    _, reference = train(make_swarm(config, [2, 2, 2]))
    left = []

    async def leave(swarm):
        server = swarm.servers[leaver]
        await until(lambda: server.state.step == 2 and len(server.state.ledger) > 0)
        left.append(await server.drain(20.0))
        await server.leave()
        left.append(server.state.state)
        await swarm.kill(leaver)

    swarm = make_swarm(config, [2, 2, 2])
    totals, states = train(swarm, leave)
    assert_exact(swarm, totals, states, reference)
    assert left == [True, "OFFLINE"] and leaver not in states
    assert totals.answered == config.steps * config.microbatches_per_step


def test_the_last_peer_of_a_stage_is_not_let_go(config, make_swarm, caplog):
    caplog.set_level(logging.WARNING)

    async def leave(swarm):
        server = swarm.servers["stage1-0"]
        await until(lambda: server.state.step == 2)
        assert not await server.drain(5.0)
        assert "nobody took over" in caplog.text
        assert "its only peers are leaving" in swarm.seconds[-1]["waiting"]
        swarm.start_peer(1)
        assert await server.drain(20.0)
        await server.leave()
        await swarm.kill("stage1-0")

    swarm = make_swarm(config, [1, 1, 1])
    totals, _ = train(swarm, leave)
    assert totals.microbatches.exact


def test_two_trainers_one_dies_the_other_resumes_the_same_step(config, make_swarm):
    _, reference = train(make_swarm(config, [2, 2, 2]))

    async def main():
        swarm = make_swarm(config, [2, 2, 2])
        for stage in range(3):
            for _ in range(2):
                swarm.start_peer(stage)
        first = asyncio.ensure_future(swarm.make_trainer("trainer-a").run())
        second_trainer = swarm.make_trainer("trainer-b")
        relays = []
        second = asyncio.ensure_future(second_trainer.run())
        last = [swarm.servers[f"stage2-{i}"].state for i in range(2)]
        await until(lambda: last[0].step == 2 and sum(len(s.ledger) for s in last) == 3)
        swarm.network.kill("trainer-a")
        first.cancel()
        await asyncio.wait([first])
        died_s = asyncio.get_running_loop().time()
        counted = frozenset().union(*(state.ledger.counted for state in last))
        for peer in ("stage2-0", "stage2-1"):
            record(swarm.servers[peer], peer, "relay", relays)
        await until(lambda: last[0].step == 3)
        took_s = asyncio.get_running_loop().time() - died_s
        totals = await second
        states = {p: await c.state() for p, c in swarm.computes.items()}
        wanted = {
            h["id"][1] for _, h in relays if h["id"][0] == 2 and 2 in h["counted_by"]
        }
        return totals, states, counted, wanted, took_s

    totals, states, counted, wanted, took_s = run_virtual(main())
    steps = config.steps - 2
    assert totals.steps == steps and totals.microbatches.exact
    assert took_s < config.tuning.lease_s + 4
    assert len(counted) >= 3 and wanted and not wanted & counted
    for peer, state in states.items():
        like = next(s for p, s in reference.items() if p[:6] == peer[:6])
        for ours, theirs in zip(state, like, strict=True):
            assert ours.tobytes() == theirs.tobytes()


def test_a_stage_that_lost_its_gradient_between_commits_gets_the_step_again(
    config, make_swarm
):
    """Rule V: the others have committed, and still have the step's parameters."""
    _, reference = train(make_swarm(config, [1, 2, 1]))

    async def lose(swarm):
        await until(lambda: swarm.servers["stage1-0"].state.step == 2)
        frozen, dying = "stage1-1", "stage1-0"
        server = swarm.servers[dying]
        handle = server.handle

        async def dies_before_the_commit(caller, message):
            header = message.header
            if header["op"] == "commit" and header["step"] == 3:
                await until(lambda: swarm.servers["stage0-0"].state.step == 4)
                await swarm.kill(dying)
            return await handle(caller, message)

        server.handle = dies_before_the_commit
        await until(lambda: server.state.step == 3)
        swarm.network.freeze(frozen)
        await until(lambda: swarm.servers["stage0-0"].state.step == 4)
        swarm.network.thaw(frozen)

    swarm = make_swarm(config, [1, 2, 1])
    totals, states = train(swarm, lose)
    assert_exact(swarm, totals, states, reference)
    assert set(states) == {"stage0-0", "stage1-1", "stage2-0"}


@pytest.mark.parametrize("allowed", [True, False])
def test_a_run_that_lost_a_stage_starts_again_only_when_allowed(
    config, make_swarm, allowed, caplog
):
    config.tuning.lost_stage_s = 3.0
    _, reference = train(make_swarm(config, [1, 1, 1]))

    async def main():
        swarm = make_swarm(config, [1, 1, 1])
        for stage in range(3):
            swarm.start_peer(stage)
        trainer = swarm.make_trainer("trainer", restart_if_lost=lambda: allowed)
        training = asyncio.ensure_future(trainer.run())
        await until(lambda: swarm.servers["stage1-0"].state.step == 3)
        await swarm.kill("stage1-0")
        swarm.start_peer(1)
        await asyncio.sleep(15.0)
        if not allowed:
            training.cancel()
            await asyncio.wait([training])
            return swarm.seconds[-1]["waiting"], None, None
        totals = await training
        states = {p: await swarm.computes[p].state() for p in swarm.servers}
        states.pop("stage1-0")
        return swarm.seconds[-1]["waiting"], totals, states

    waiting, totals, states = run_virtual(main())
    if not allowed:
        assert "stage 1: no peer with the state of step 3" in waiting
        assert "--restart_if_lost" in waiting
        return
    assert totals.microbatches.exact and "the run starts again" in caplog.text
    for peer, state in states.items():
        like = next(s for p, s in reference.items() if p[:6] == peer[:6])
        for ours, theirs in zip(state, like, strict=True):
            assert ours.tobytes() == theirs.tobytes()


def test_a_run_without_a_trainer_says_so(config, make_swarm, caplog):
    async def main():
        swarm = make_swarm(config, [1, 1, 1])
        peer = swarm.start_peer(1)
        await asyncio.sleep(40.0)
        await swarm.kill(peer)

    run_virtual(main())
    assert len([r for r in caplog.records if "is there a trainer?" in r.message]) == 2


class LateCompute(ModelledCompute):
    """Is ready when ``programs`` is set, and was asked for nothing before."""

    def __init__(self, config, stage, programs):
        super().__init__(config, stage)
        self.programs = programs
        self.on_operation = lambda kind, name: self.check()

    def check(self):
        assert self.programs.is_set()

    async def ready(self):
        await self.programs.wait()

    async def clear(self):
        if self.programs.is_set():
            await super().clear()


def make_late(config, make_swarm, peers_per_stage, late, programs):
    """A swarm whose ``late``-th peer of stage 1 is not ready before it is told."""
    swarm = make_swarm(config, peers_per_stage)
    make, started = swarm._make_compute, []

    def make_compute(stage):
        started.append(stage)
        if stage == 1 and started.count(1) == late + 1:
            return LateCompute(config, stage, programs)
        return make(stage)

    swarm._make_compute = make_compute
    return swarm


def test_a_joiner_compiles_while_its_state_is_on_the_way(
    config, make_swarm, small_chunks
):
    """And no step of the swarm waits for its compiler."""
    _, reference = train(make_swarm(config, [1, 2, 1]))
    programs, events = asyncio.Event(), []

    async def join(swarm):
        mate = swarm.servers["stage1-0"].state
        await until(lambda: mate.step == 1)
        peer = swarm.start_peer(1)
        server = swarm.servers[peer]
        await until(lambda: server.arrival.parts.download_s > 0)
        events.append(("state here", server.state.state, peer in swarm.ready))
        await until(lambda: mate.step == 3)
        events.append(("others are further", server.state.state, peer in swarm.ready))
        programs.set()
        await until(lambda: peer in swarm.ready)
        events.append(("ready", server.state.state, True))
        assert server.state.step >= 3

    swarm = make_late(config, make_swarm, [1, 2, 1], 2, programs)
    totals, states = train(swarm, join)
    assert_exact(swarm, totals, states, reference)
    assert events == [
        ("state here", "JOINING", False),
        ("others are further", "JOINING", False),
        ("ready", "ONLINE", True),
    ]
    parts = swarm.servers["stage1-2"].arrival.parts
    assert 0 < parts.download_s < parts.compile_s == parts.busy_s
    assert sum(counted_by(swarm, "stage1-2")) > 0


def test_who_is_not_ready_is_not_sent_to(config, make_swarm):
    """With nobody to fetch a state from, there is nothing to do meanwhile."""
    programs, meanwhile = asyncio.Event(), []

    async def compile_late(swarm):
        await asyncio.sleep(1.0)
        server = swarm.servers["stage1-0"]
        meanwhile.append((set(swarm.ready), server.view.online(1), swarm.steps[:]))
        programs.set()

    swarm = make_late(config, make_swarm, [1, 1, 1], 0, programs)
    totals, _ = train(swarm, compile_late)
    assert meanwhile == [({"stage0-0", "stage2-0"}, [], [])]
    assert totals.microbatches.exact


def test_who_is_told_to_leave_before_it_is_ready_just_goes(config, make_swarm):
    async def main():
        swarm = make_late(config, make_swarm, [1, 1, 1], 0, asyncio.Event())
        peer = swarm.start_peer(1)
        await asyncio.sleep(0.1)
        began_s = asyncio.get_running_loop().time()
        assert await swarm.servers[peer].drain(20.0)
        assert asyncio.get_running_loop().time() - began_s < 0.1
        await swarm.kill(peer)

    run_virtual(main())


def test_a_device_that_cannot_be_prepared_ends_the_server(config, make_swarm):
    class Broken(ModelledCompute):
        async def ready(self):
            raise RuntimeError("no memory")

    async def main():
        swarm = make_swarm(config, [1, 1, 1])
        swarm._make_compute = lambda stage: Broken(config, stage)
        peer = swarm.start_peer(1)
        await asyncio.sleep(0.1)
        assert "no memory" in str(swarm.crashed[peer])
        await swarm.kill(peer)

    run_virtual(main())
