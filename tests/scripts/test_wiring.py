"""What peers of one process share is the same for all of them."""

import jax
import numpy as np

from models.config import GPTConfig
from scripts.wiring import make_compute
from swarm_jax.config import ExperimentConfig


def initial(seed, stage):
    model = GPTConfig(
        num_layers=4, model_dim=8, num_heads=2, ffn_dim=16, sequence_length=4
    )
    config = ExperimentConfig(run_id="test", steps=1, seed=seed, model=model)
    config.swarm.num_stages = 4
    params = make_compute(config, stage, inline=True).params
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def test_replicas_begin_alike_but_no_two_stages_or_seeds():
    ours = initial(seed=0, stage=1)
    assert ours.tobytes() == initial(seed=0, stage=1).tobytes()
    assert not np.array_equal(ours, initial(seed=1, stage=1))
    assert not np.array_equal(ours, initial(seed=0, stage=2))
