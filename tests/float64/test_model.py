"""The model in float64: derivatives against differences, one start for both dtypes."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from models.config import GPTConfig
from models.functional import make_stage

CONFIG = GPTConfig(
    num_layers=2,
    model_dim=8,
    num_heads=2,
    ffn_dim=12,
    vocab_size=11,
    sequence_length=6,
    parameter_dtype="float64",
)


CHOICES = {
    "gelu": {},
    "geglu": {"feed_forward": "geglu"},
    "bottleneck": {
        "norm": "layer",
        "biases": True,
        "boundaries": (1,),
        "boundary": "bottleneck",
        "boundary_factor": 2,
        "block_repeats": 2,
        "positions": "learned",
        "tied_head": True,
    },
    "maxout": {
        "feed_forward": "swiglu",
        "num_kv_heads": 1,
        "boundaries": (1,),
        "boundary": "maxout",
        "boundary_factor": 2,
        "positions": "sinusoidal",
        "embedding_dim": 4,
        "embedding_norm": True,
        "head": "factorised",
        "head_bias": True,
        "vocab_multiple": 8,
    },
}


@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_are_those_of_finite_differences(choice):
    config = dataclasses.replace(CONFIG, **CHOICES[choice])
    functions = make_stage(config, 0, 2)
    tokens, targets = np.random.default_rng(0).integers(0, 11, (2, 2, 6))
    targets[0, :3] = -1
    loss = jax.jit(functions.loss)
    check_grads(
        lambda params: loss(params, tokens, targets),
        (functions.init(7),),
        order=1,
        modes=("rev",),
        eps=1e-6,
        rtol=1e-7,
        atol=1e-7,
    )


def test_both_dtypes_start_from_one_model():
    single = dataclasses.replace(CONFIG, parameter_dtype="float32")
    wide, narrow = (make_stage(c, 0, 2).init(7) for c in (CONFIG, single))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), wide, narrow)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(wide)} == {"float64"}
