"""The model that this folder trains: plainly, and in a swarm."""

import asyncio

import jax
import numpy as np

from models.config import GPTConfig
from models.functional import tied_layer, to_layers
from scripts.wiring import make_compute, make_control, stage_layers
from swarm_jax.config import ExperimentConfig
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.data import RandomTokens
from swarm_jax.sim.swarm import SimulatedSwarm

LAYERS = 5


def make_config(layers_per_stage, **choices) -> ExperimentConfig:
    """Args:
    choices: Fields of the model that are other than here.
    """
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
            **choices,
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


def train_plainly(config=None, *, simulate_wire=False):
    """Losses and final parameters by layer of plain training."""
    config = config or make_config((LAYERS,))
    data = RandomTokens(config)
    functions, init_optimizer, step = make_control(config, simulate_wire=simulate_wire)
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
    layers = jax.device_get(to_layers(params, 0))
    if config.model.tied_head:  # where stages share it
        layers["tied"] = tied_layer(layers["embed"])
    return losses, layers


def train(config, peers_per_stage, disturb=None):
    """Trains a swarm; returns it and its totals."""
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
    assert compared == layers.keys() - ({"tied"} - compared)
