"""A model small enough to compile in a second, and tokens for it.

Shape suffixes: B microbatch, L sequence.
"""

import jax
import numpy as np
import pytest

from models.config import GPTConfig
from models.functional import Params, StageFunctions, make_stage


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def config() -> GPTConfig:
    return GPTConfig(
        num_layers=5,
        model_dim=16,
        num_heads=2,
        ffn_dim=24,
        feed_forward="geglu",
        vocab_size=37,
        sequence_length=12,
    )


@pytest.fixture(scope="session")
def whole(config) -> StageFunctions:
    """The whole model as one stage."""
    return make_stage(config, 0, config.num_layers)


@pytest.fixture(scope="session")
def params(whole) -> Params:
    with jax.numpy_rank_promotion("raise"):
        return whole.init(7)


@pytest.fixture(scope="session")
def loss_and_gradients(whole):
    """Compiled once: ``loss_and_gradients(params, tokens_BL, targets_BL)``."""
    return jax.jit(jax.value_and_grad(whole.loss))


@pytest.fixture
def tokens_BL(config) -> np.ndarray:
    shape = (3, config.sequence_length)
    generator = np.random.default_rng(0)
    return generator.integers(0, config.vocab_size, shape, dtype=np.int32)


@pytest.fixture
def targets_BL(config) -> np.ndarray:
    """Every fifth of them takes no loss."""
    shape = (3, config.sequence_length)
    generator = np.random.default_rng(1)
    targets = generator.integers(0, config.vocab_size, shape, dtype=np.int32)
    return np.where(generator.random(shape) < 0.2, -1, targets).astype(np.int32)
