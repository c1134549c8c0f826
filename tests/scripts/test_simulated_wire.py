"""What lossy wires cost a small model, by simulating them in one process."""

import jax
import numpy as np
import pytest

from models.config import GPTConfig
from scripts.wiring import make_control
from swarm_jax.config import ExperimentConfig

SEEDS = 3
STEPS, SEQUENCES, LENGTH, TOKENS = 50, 16, 16, 32
HELD_OUT = 16


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def make_config(wire):
    model = GPTConfig(
        num_layers=3,
        model_dim=32,
        num_heads=2,
        ffn_dim=64,
        vocab_size=TOKENS,
        sequence_length=LENGTH,
    )
    config = ExperimentConfig(run_id="test", steps=STEPS, model=model)
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 10
    config.swarm.microbatch_size = 8
    config.swarm.wire = wire
    return config


def sequences(generator, count):
    """Of a chain in which each token has four likely successors."""
    successors = np.random.default_rng(0).integers(TOKENS, size=(TOKENS, 4))
    tokens = [generator.integers(TOKENS, size=count)]
    for _ in range(LENGTH):
        tokens.append(successors[tokens[-1], generator.integers(4, size=count)])
    tokens = np.stack(tokens, axis=1).astype(np.int32)
    return tokens[:, :-1], tokens[:, 1:]


def held_out_losses(wire):
    """Per token, for each seed of initialisation and data."""
    functions, init_optimizer, step = make_control(
        make_config(wire), simulate_wire=True
    )
    loss = jax.jit(functions.loss)
    batches = [
        sequences(np.random.default_rng([9, index]), 8) for index in range(HELD_OUT)
    ]
    losses = []
    for seed in range(SEEDS):
        params = functions.init(seed)
        state = init_optimizer(params)
        generator = np.random.default_rng([1, seed])
        for _ in range(STEPS):
            batch = sequences(generator, SEQUENCES)
            params, state, _, _ = step(params, state, *batch)
        total = sum(float(loss(params, *batch)) for batch in batches)
        losses.append(total / (HELD_OUT * 8 * LENGTH))
    return np.array(losses)


@pytest.fixture(scope="module")
def float32_losses():
    return held_out_losses("float32")


@pytest.mark.parametrize("wire", ["int8", "dynamic8"])
def test_an_8_bit_wire_costs_less_than_another_seed_would(wire, float32_losses):
    """It is used in both directions, at two boundaries."""
    assert np.log(4) < float32_losses.min() and float32_losses.max() < 2.5
    difference = held_out_losses(wire) - float32_losses
    assert 0 < np.abs(difference).max() < float32_losses.std(ddof=1)
