"""The model that this folder trains, and what plain training makes of it."""

import jax
import numpy as np

from models.config import GPTConfig
from models.functional import to_layers
from scripts.wiring import make_control, stage_layers
from swarm_jax.config import ExperimentConfig
from swarm_jax.sim.data import RandomTokens

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


def train_plainly(config=None):
    """Losses and final parameters by layer of plain training."""
    config = config or make_config((LAYERS,))
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
