"""Blocks one by one are the same blocks, and the same model."""

import jax
import numpy as np
import pytest

from models.functional import make_stage
from swarm_jax.stage.blocks import stack, unstack
from tests.models.architectures import CHANGES, small

ROUNDING = 1e-5


def test_stacked_again_they_are_as_they_were(toy):
    params = jax.tree.map(np.asarray, toy.init(3))
    weights = unstack(params)
    assert [block["scale"].shape for block in weights["blocks"]] == [(6,)] * 4
    np.testing.assert_array_equal(
        weights["blocks"][2]["kernel"], params["blocks"]["kernel"][2]
    )
    again = stack(weights)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for ours, theirs in zip(
        jax.tree.leaves(again), jax.tree.leaves(params), strict=True
    ):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", CHANGES)
def test_every_architecture_is_the_same_model_with_its_blocks_one_by_one(name):
    config = small(name)
    stage = make_stage(config, 0, config.num_layers)
    params = stage.init(7)
    shape_BL = 2, config.sequence_length
    tokens_BL = np.random.default_rng(0).integers(
        config.vocab_size, size=shape_BL, dtype=np.int32
    )
    both = jax.jit(jax.value_and_grad(stage.loss))
    loss, gradients = both(params, tokens_BL, tokens_BL)
    found_loss, found = both(unstack(params), tokens_BL, tokens_BL)
    np.testing.assert_allclose(found_loss, loss, rtol=ROUNDING)
    for ours, theirs in zip(
        jax.tree.leaves(stack(found)), jax.tree.leaves(gradients), strict=True
    ):
        limit = ROUNDING * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)
