"""Stages one after another, without a swarm, against plain training, to 1e-9."""

import asyncio

import jax
import numpy as np
import pytest

from models.config import GPTConfig
from models.functional import to_layers
from scripts import wiring
from swarm_jax.config import REMATS, ExperimentConfig

STEPS = 20
MICROBATCHES = 2


def make_config(layers_per_stage) -> ExperimentConfig:
    config = ExperimentConfig(
        run_id="test",
        seed=5,
        steps=STEPS,
        model=GPTConfig(
            num_layers=4,
            model_dim=8,
            num_heads=2,
            ffn_dim=16,
            vocab_size=19,
            sequence_length=5,
            parameter_dtype="float64",
        ),
    )
    config.optimizer.warmup_steps = 3
    config.optimizer.clip_norm = 0.3
    config.swarm.microbatch_size = 2
    config.swarm.wire = "float64"
    config.swarm.num_stages = len(layers_per_stage)
    config.swarm.layers_per_stage = layers_per_stage
    return config


def batch(step):
    """inputs_NL, targets_NL; some targets carry no loss."""
    generator = np.random.default_rng(step)
    tokens = generator.integers(19, size=(2 * MICROBATCHES, 6)).astype(np.int32)
    targets_NL = tokens[:, 1:].copy()
    targets_NL[1, : step % 4] = -1
    return tokens[:, :-1].copy(), targets_NL


@pytest.fixture(scope="module")
def plain():
    """Losses, gradient norms and final parameters by layer of plain training."""
    config = make_config((4,))
    functions, init_optimizer, train_step = wiring.make_control(config)
    params = functions.init(config.seed)
    opt_state = init_optimizer(params)
    losses, norms = [], []
    for step in range(STEPS):
        params, opt_state, loss, norm = train_step(params, opt_state, *batch(step))
        losses.append(float(loss))
        norms.append(float(norm))
    assert max(norms) > config.optimizer.clip_norm
    return losses, norms, jax.device_get(to_layers(params, 0))


class Counted:
    def start(self):
        return True

    def settle(self, finite, loss_sum):
        assert finite


async def add_microbatch(stages, inputs_BL, targets_BL):
    """There and back; returns the sum of the loss."""
    x, kept = (inputs_BL,), []
    for stage in stages[:-1]:
        forward = await stage.forward(x, keep=True, order=0)
        x = forward.y
        kept.append(forward.residuals)
    back = await stages[-1].loss_backward(x, targets_BL, count=Counted(), order=0)
    loss_sum = back.loss_sum
    for stage, residuals in zip(reversed(stages[:-1]), reversed(kept), strict=True):
        back = await stage.backward(residuals, back.grad_x, count=Counted(), order=0)
    return loss_sum


async def train(stages):
    losses, norms = [], []
    for step in range(STEPS):
        inputs_NL, targets_NL = batch(step)
        microbatches = zip(
            np.split(inputs_NL, MICROBATCHES),
            np.split(targets_NL, MICROBATCHES),
            strict=True,
        )
        loss_sums = [await add_microbatch(stages, *arrays) for arrays in microbatches]
        loss_tokens = int(np.sum(targets_NL >= 0))
        squared_norm = 0.0
        for stage in stages:
            gradients = await stage.gradient_sum(1 / loss_tokens)
            squared_norm += (await stage.load_reduced(gradients)).squared_norm
        for stage in stages:
            await stage.apply(squared_norm**0.5)
        losses.append(sum(loss_sums) / loss_tokens)
        norms.append(squared_norm**0.5)
    return losses, norms


@pytest.mark.parametrize("remat", REMATS)
def test_chained_stages_train_like_the_whole_model(plain, remat):
    config = make_config((1, 1, 2))
    config.tuning.remat = remat
    stages = [wiring.make_compute(config, stage, inline=True) for stage in range(3)]
    losses, norms = asyncio.run(train(stages))
    np.testing.assert_allclose(losses, plain[0], rtol=1e-12)
    np.testing.assert_allclose(norms, plain[1], rtol=1e-9)
    layers = {}
    for layout, stage in zip(wiring.stage_layers(config), stages, strict=True):
        layers |= to_layers(stage.params, layout.first_layer)
    assert layers.keys() == plain[2].keys()
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max()
        ),
        layers,
        plain[2],
    )
