"""The swarm's result is plain training's, to 1e-9: no mistake hides behind rounding.

Real roles over the in-process network, in float64 with a float64 wire, on virtual time.
"""

import asyncio
import random

import jax
import numpy as np
import pytest

from models.config import GPTConfig
from models.functional import to_layers
from scripts.wiring import make_compute, make_control, stage_layers
from swarm_jax.config import ExperimentConfig
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.data import RandomTokens
from swarm_jax.sim.swarm import SimulatedSwarm

LAYERS = 5


def make_config(layers_per_stage) -> ExperimentConfig:
    config = ExperimentConfig(
        run_id="test",
        seed=3,
        steps=20,
        model=GPTConfig(
            num_layers=LAYERS,
            model_dim=8,
            num_heads=2,
            ffn_dim=16,
            feed_forward="geglu",
            vocab_size=260,
            sequence_length=6,
            parameter_dtype="float64",
        ),
    )
    config.optimizer.warmup_steps = 2
    config.optimizer.clip_norm = 0.5
    config.data.target_batch_size = 8
    config.validation.sequences = 4
    config.swarm.microbatch_size = 2
    config.swarm.wire = "float64"
    config.tuning.rebalancing.strategy = "off"
    config.swarm.num_stages = len(layers_per_stage)
    config.swarm.layers_per_stage = layers_per_stage
    return config.check()


def random_swarm(seed: int):
    """Layers and number of peers of each of 1 to 5 stages."""
    generator = random.Random(seed)
    stages = generator.randint(1, LAYERS)
    cuts = sorted(generator.sample(range(1, LAYERS), stages - 1))
    layers = [b - a for a, b in zip([0, *cuts], [*cuts, LAYERS], strict=True)]
    return tuple(layers), [generator.randint(1, 4) for _ in range(stages)]


@pytest.fixture(scope="module")
def plain():
    """Losses and final parameters by layer of plain training."""
    config = make_config((LAYERS,))
    data = RandomTokens(config)
    functions, init_optimizer, step = make_control(config)
    params = functions.init(config.seed)
    state = init_optimizer(params)
    losses = []
    for number in range(config.steps):
        batch = [
            data.microbatch(number, index)
            for index in range(config.microbatches_per_step)
        ]
        inputs_NL = np.concatenate([b.inputs for b in batch])
        targets_NL = np.concatenate([b.targets for b in batch])
        params, state, loss, _ = step(params, state, inputs_NL, targets_NL)
        losses.append(float(loss))
    return losses, jax.device_get(to_layers(params, 0))


def train(config, peers_per_stage, disturb=None):
    """Returns the swarm, its totals, and the final parameters of each peer."""
    swarm = SimulatedSwarm(
        config,
        data=RandomTokens(config),
        make_compute=lambda stage: make_compute(
            config, stage, inline=True, duration_s=lambda operation: 0.01
        ),
        peers_per_stage=peers_per_stage,
    )

    async def main():
        task = asyncio.ensure_future(disturb(swarm)) if disturb else None
        totals = await swarm.run()
        if task:
            await task
        return totals

    return swarm, run_virtual(main())


def check_equal(swarm, totals, plain):
    losses, layers = plain
    assert totals.microbatches.exact
    swarm_losses = [record["train_loss"] for record in swarm.steps]
    np.testing.assert_allclose(swarm_losses, losses, rtol=1e-12)
    compared = set()
    for peer, server in swarm.servers.items():
        if server.state.step < swarm.config.steps:
            continue
        first_layer = stage_layers(swarm.config)[server.state.stage].first_layer
        ours = to_layers(swarm.computes[peer].params, first_layer)
        compared |= ours.keys()
        for name, tree in ours.items():
            for (path, a), b in zip(
                jax.tree.leaves_with_path(tree),
                jax.tree.leaves(layers[name]),
                strict=True,
            ):
                error = np.max(np.abs(a - b)) / np.max(np.abs(b))
                assert error < 1e-9, (peer, name, path, error)
    assert compared == layers.keys()


@pytest.mark.parametrize("seed", range(10))
def test_any_partition_trains_the_same_model(seed, plain):
    layers, peers = random_swarm(seed)
    swarm, totals = train(make_config(layers), peers)
    check_equal(swarm, totals, plain)


@pytest.mark.parametrize("victim", ["stage0-0", "stage1-1", "stage2-0"])
def test_a_peer_killed_in_the_middle_of_a_step_changes_nothing(victim, plain):
    async def kill(swarm):
        state = swarm.servers[victim].state
        while state.step < 3 or not state.ledger.counted:
            await asyncio.sleep(0.001)
        await swarm.kill(victim)

    swarm, totals = train(make_config((2, 1, 2)), [2, 2, 2], kill)
    assert swarm.servers[victim].state.step < swarm.config.steps
    check_equal(swarm, totals, plain)
