"""A peer that is short of memory takes part like any other, and says what it did."""

import asyncio
import gc
import weakref

import numpy as np

from scripts.wiring import make_compute, make_programs
from swarm_jax.core.ids import MicrobatchID, Round
from swarm_jax.core.stage_state import StageState
from swarm_jax.roles.messages import Relay
from swarm_jax.roles.relaying import Relaying
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.data import RandomTokens
from swarm_jax.sim.swarm import SimulatedSwarm
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.residuals import ResidualBudget


def trained(config, microbatches):
    """A swarm whose stages keep residuals of so many, at its end, with its states."""

    def make(stage):
        init = make_compute(config, stage, inline=True).params
        programs = make_programs(config, stage)
        return InlineCompute(
            programs,
            lambda: programs.copy(init),
            lambda operation: 0.01,
            residuals=ResidualBudget(microbatches),
        )

    swarm = SimulatedSwarm(
        config.check(),
        data=RandomTokens(config),
        make_compute=make,
        peers_per_stage=[1, 2, 1],
    )

    async def main():
        await swarm.run()
        return {peer: await swarm.computes[peer].state() for peer in swarm.servers}

    return swarm, run_virtual(main())


def test_a_swarm_that_recomputes_trains_the_same_and_counts_it(config):
    _, expected = trained(config, None)
    swarm, states = trained(config, 1)
    for peer, state in states.items():
        for ours, theirs in zip(state, expected[peer], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    for peer in ("stage0-0", "stage1-0", "stage1-1"):
        records = swarm.peer_steps[peer]
        kept = [record["residuals_kept"] for record in records]
        again = [record["residuals_recomputed"] for record in records]
        counted = [record["microbatches_counted"] for record in records]
        assert [a + b for a, b in zip(kept, again, strict=True)] == counted
        assert sum(kept) and sum(again)
    assert "residuals_kept" not in swarm.peer_steps["stage2-0"][0]


def test_a_microbatch_whose_sender_died_leaves_no_residuals(config):
    class Nobody:
        async def send(self, relay, arrays):
            await asyncio.Event().wait()

    async def scenario():
        compute = make_compute(config, 0, inline=True)
        kept = []
        forward = compute.forward

        async def watched(*args, **kwargs):
            result = await forward(*args, **kwargs)
            kept.append(weakref.ref(result.residuals))
            return result

        compute.forward = watched
        relaying = Relaying(
            "p", StageState(0), compute, Nobody(), lambda *_: None, None
        )
        microbatch = RandomTokens(config).microbatch(0, 0)
        relay = Relay(
            round=Round(1, "t", 1),
            generation=0,
            stage=0,
            id=MicrobatchID(0, 0),
            counted_by=frozenset({0}),
            training=True,
            avoid=frozenset(),
            budget_s=100.0,
        )
        arrays = [microbatch.targets, microbatch.inputs]
        task = asyncio.ensure_future(relaying.run(relay, arrays))
        while not kept:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        del task
        await asyncio.sleep(0.01)
        assert kept[0]() is None

    gc.collect()
    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()
