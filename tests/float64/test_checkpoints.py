"""A float64 state on disk loses no bit."""

import asyncio

import jax
import numpy as np

from models.config import GPTConfig
from scripts import wiring
from swarm_jax.config import ExperimentConfig, to_dict
from swarm_jax.stage.checkpoints import CheckpointFolder
from swarm_jax.stage.layered import LayeredState
from swarm_jax.stage.manifests import Saved


def make_config() -> ExperimentConfig:
    config = ExperimentConfig(
        run_id="test",
        steps=10,
        model=GPTConfig(
            num_layers=2,
            model_dim=8,
            num_heads=2,
            ffn_dim=16,
            vocab_size=19,
            sequence_length=5,
            parameter_dtype="float64",
        ),
    )
    config.swarm.wire = "float64"
    config.swarm.num_stages = 2
    return config


def test_a_float64_state_is_restored_bit_for_bit(tmp_path):
    config = make_config()
    computes = [wiring.make_compute(config, stage, inline=True) for stage in range(2)]
    layered = [
        LayeredState(compute.state_structure, layers.first_layer)
        for compute, layers in zip(computes, wiring.stage_layers(config), strict=True)
    ]
    folder = CheckpointFolder(tmp_path, model_fingerprint=config.model_fingerprint())

    async def scenario():
        for compute in computes:
            gradients = [np.asarray(g) + 1 / 3 for g in await compute.gradient_sum(1.0)]
            norm = (await compute.load_reduced(gradients)).squared_norm ** 0.5
            await compute.apply(norm)
        states = [await compute.state() for compute in computes]
        digests = {
            stage: folder.save(stage, 2, Saved(1, 0, "", None), *one.split(state))
            for stage, (one, state) in enumerate(zip(layered, states, strict=True))
        }
        folder.complete(1, 0, digests, config=to_dict(config), summary={})
        for compute, one, state in zip(computes, layered, states, strict=True):
            _, *arrays = folder.load(1, one.names)
            await compute.load_state(one.join(*arrays))
            restored = await compute.state()
            assert [a.tobytes() for a in restored] == [a.tobytes() for a in state]
            assert "float64" in {array.dtype.name for array in restored}

    asyncio.run(scenario())
    assert jax.config.jax_enable_x64
