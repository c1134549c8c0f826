"""Small swarms on virtual time: real roles, real JAX, the in-process network."""

import os

os.environ.setdefault("PJRT_NPROC", "1")

import pytest

from models.config import GPTConfig
from scripts.wiring import make_compute
from swarm_jax.config import ExperimentConfig
from swarm_jax.sim.data import RandomTokens
from swarm_jax.sim.swarm import SimulatedSwarm


def make_config() -> ExperimentConfig:
    config = ExperimentConfig(
        run_id="test",
        seed=1,
        steps=6,
        model=GPTConfig(
            num_layers=3,
            model_dim=8,
            num_heads=2,
            ffn_dim=16,
            vocab_size=260,
            sequence_length=4,
        ),
    )
    config.optimizer.warmup_steps = 1
    config.data.target_batch_size = 12
    config.tuning.rebalancing.strategy = "off"
    config.swarm.num_stages = 3
    config.swarm.microbatch_size = 2
    config.validation.sequences = 4
    return config


@pytest.fixture
def config() -> ExperimentConfig:
    return make_config()


@pytest.fixture
def make_swarm():
    """``make_swarm(config, peers_per_stage)``: computing takes 10 virtual ms."""

    def make(
        config, peers_per_stage, duration_s=lambda operation: 0.01, **kwargs
    ) -> SimulatedSwarm:
        return SimulatedSwarm(
            config.check(),
            data=RandomTokens(config),
            make_compute=lambda stage: make_compute(
                config, stage, inline=True, duration_s=duration_s
            ),
            peers_per_stage=peers_per_stage,
            **kwargs,
        )

    return make
