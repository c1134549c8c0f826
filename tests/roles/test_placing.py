"""Peers that are not told their stage, on virtual time."""

import asyncio
from collections import Counter

from swarm_jax.net.local import LocalNetwork
from swarm_jax.roles.placing import choose_stage
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.modelled import ModelledCompute, ModelledTokens, modelled_config
from swarm_jax.sim.swarm import SimulatedSwarm


def test_peers_that_start_together_spread_over_the_stages():
    config = modelled_config(num_stages=3, steps=1)

    async def main():
        network = LocalNetwork()
        names = [f"peer{i}" for i in range(6)]
        choices = (choose_stage(config, network.directory(n), n) for n in names)
        return Counter(await asyncio.gather(*choices))

    assert run_virtual(main()) == {0: 2, 1: 2, 2: 2}


def test_a_late_peer_goes_to_the_stage_that_lost_one():
    config = modelled_config(num_stages=3, steps=30)
    swarm = SimulatedSwarm(
        config,
        data=ModelledTokens(config),
        make_compute=lambda stage: ModelledCompute(config, stage),
        peers_per_stage=[2, 2, 2],
    )

    async def main():
        training = asyncio.ensure_future(swarm.run())
        while not swarm.steps:
            await asyncio.sleep(0.1)
        await swarm.kill("stage1-1")
        await asyncio.sleep(config.tuning.directory_expiry_s)
        chosen = await choose_stage(config, swarm.network.directory("new"), "new")
        await training
        return chosen

    assert run_virtual(main()) == 1
