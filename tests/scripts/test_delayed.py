"""Delayed updates in bfloat16: older weights belong to a stage's state."""

import asyncio

import numpy as np
import pytest

from models.config import GPTConfig
from scripts.wiring import make_checkpoints, make_compute
from swarm_jax.config import ExperimentConfig
from swarm_jax.roles.checkpoints import SavedPosition
from swarm_jax.roles.snapshots import _joined, arrays_of, state_bytes
from swarm_jax.sim.data import RandomTokens


class Count:
    is_early = False

    def start(self):
        return True

    def settle(self, finite, loss_sum):
        assert finite


def make_config(delayed_updates, compute_dtype="bfloat16"):
    model = GPTConfig(
        num_layers=2,
        model_dim=8,
        num_heads=2,
        ffn_dim=16,
        vocab_size=260,
        sequence_length=6,
        compute_dtype=compute_dtype,
    )
    config = ExperimentConfig(run_id="test", seed=3, steps=8, model=model)
    config.optimizer.warmup_steps = 0
    config.data.target_batch_size = config.validation.sequences = 2
    config.swarm.microbatch_size = 2
    config.swarm.num_stages = 1
    config.swarm.delayed_updates = delayed_updates
    return config.check()


@pytest.fixture
def make():
    """``make(delayed_updates, compute_dtype)``: a stage's config and compute."""
    made = []

    def make(*args):
        config = make_config(*args)
        made.append(make_compute(config, 0, inline=True))
        return config, made[-1]

    yield make
    for compute in made:
        compute.close()


async def train(config, compute):
    for step in range(2):
        batch = RandomTokens(config).microbatch(step, 0)
        await compute.loss_backward(
            [batch.inputs], batch.targets, count=Count(), order=0
        )
        reduced = await compute.load_reduced(await compute.gradient_sum(0.1))
        await compute.apply(reduced.squared_norm**0.5)


def as_bytes(arrays):
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_state_travels_to_a_joiner(dtype, make):
    """On a device of another kind, too: what it computes with is its own affair."""

    async def scenario():
        config, compute = make(True)
        await train(config, compute)
        state = await compute.state()
        assert {array.dtype.name for array in state} == {"float32", "int32"}
        data = await _joined(state)
        assert len(data) == state_bytes(compute.state_specs)
        _, joiner = make(True, dtype)
        await joiner.load_state(arrays_of(data, joiner.state_specs))
        assert as_bytes(await joiner.state()) == as_bytes(state)

    asyncio.run(scenario())


@pytest.mark.parametrize("was_delayed", [True, False])
def test_it_goes_on_from_a_checkpoint(was_delayed, make, tmp_path, caplog):
    """Of a run without, the parameters are those before the last update, too."""

    async def scenario():
        config, compute = make(was_delayed)
        await train(config, compute)
        state = await compute.state()
        checkpoints = make_checkpoints(config, 0, compute, str(tmp_path))
        digest = await checkpoints.save(SavedPosition(0, 2, "a", (1, 1.0)), state)
        await checkpoints.complete(2, 0, {0: digest}, {})
        checkpoints.close()

        config, resumed = make(True)
        checkpoints = make_checkpoints(config, 0, resumed, str(tmp_path))
        _, loaded = await checkpoints.load(2)
        await resumed.load_state(loaded)
        checkpoints.close()
        restored = await resumed.state()
        assert as_bytes(restored)[: len(state)] == as_bytes(state)
        assert ("saved without" in caplog.text) != was_delayed
        batch = RandomTokens(config).microbatch(5, 0)
        now, before = [
            (
                await resumed.loss_backward(
                    [batch.inputs], batch.targets, count=None, order=0, previous=p
                )
            ).loss_sum
            for p in (0, 1)
        ]
        assert (now != before) == was_delayed
        assert np.isfinite(before)

    asyncio.run(scenario())
