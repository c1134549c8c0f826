"""A model with everything that is not the default, trained with LAMB, to 1e-9.

There are no biases of keys: where positions are learned their gradient is rounding.
"""

import pytest

from models.config import GPTConfig
from swarm_jax.config import OptimizerConfig
from tests.float64.plain import LAYERS, check_equal, make_config, train_plainly
from tests.float64.test_swarm import train


def unusual(layers_per_stage):
    config = make_config(layers_per_stage)
    config.model = GPTConfig(
        num_layers=LAYERS,
        block_repeats=2,
        model_dim=16,
        num_heads=4,
        num_kv_heads=2,
        ffn_dim=12,
        feed_forward="swiglu",
        norm="layer",
        positions="learned",
        biases=True,
        qkv_biases=False,
        vocab_size=260,
        vocab_multiple=16,
        sequence_length=6,
        embedding_dim=8,
        embedding_norm=True,
        embedding_scale=2.0,
        head="factorised",
        head_bias=True,
        boundaries=(1, 3),
        boundary="bottleneck",
        boundary_factor=4,
        parameter_dtype="float64",
    )
    config.optimizer = OptimizerConfig(
        name="lamb", schedule="linear", warmup_steps=2, clip_norm=0.5
    )
    return config.check()


@pytest.fixture(scope="module")
def plain_unusual():
    return train_plainly(unusual((LAYERS,)))


@pytest.mark.parametrize(
    ("layers", "peers"), [((1, 2, 2), [1, 2, 2]), ((2, 1, 2), [2, 1, 1]), ((5,), [2])]
)
def test_any_partition_trains_the_same_model(layers, peers, plain_unusual):
    """Cut at both boundary layers, at one of them, and nowhere."""
    swarm, totals = train(unusual(layers), peers)
    check_equal(swarm, totals, plain_unusual)
