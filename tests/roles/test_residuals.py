"""A peer that is short of memory takes part like any other, and says what it did."""

import numpy as np

from scripts.wiring import make_compute, make_programs
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
