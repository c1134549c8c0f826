"""What blocks keep for their backward pass changes memory, and no result."""

from functools import partial

import jax
import numpy as np
import pytest

from models.functional import KEEP_EVERYTHING, make_stage
from swarm_jax.config import REMATS
from tests.models.architectures import CHANGES, small

# Shape suffixes: B microbatch, L sequence.

LEAN = [remat for remat in REMATS if remat != KEEP_EVERYTHING]
ROUNDING = 1e-5


def tokens(config, batch):
    shape_BL = batch, config.sequence_length
    generator = np.random.default_rng(0)
    return generator.integers(config.vocab_size, size=shape_BL, dtype=np.int32)


def forward_keeping(config, remat, tokens_BL):
    """``(params) -> residuals`` of the first two blocks, and the params' shapes."""
    functions = make_stage(config, 0, 2, remat)

    def forward(params):
        _, vjp = jax.vjp(lambda params: functions.apply(params, tokens_BL), params)
        vjp.args_res[0] = None
        return vjp

    return jax.jit(forward), jax.eval_shape(functions.init, 0)


@pytest.mark.parametrize("name", CHANGES)
def test_losses_and_gradients_are_equal_but_for_rounding(name):
    config = small(name)
    tokens_BL, targets_BL = tokens(config, 2), tokens(config, 4)[2:]
    params = make_stage(config, 0, 3).init(7)

    @partial(jax.jit, static_argnums=0)
    def loss_and_gradients(remat):
        loss = make_stage(config, 0, 3, remat).loss
        return jax.value_and_grad(loss)(params, tokens_BL, targets_BL)

    loss, gradients = loss_and_gradients(KEEP_EVERYTHING)
    for remat in LEAN:
        found_loss, found = loss_and_gradients(remat)
        np.testing.assert_allclose(found_loss, loss, rtol=ROUNDING)
        for ours, theirs in zip(
            jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True
        ):
            limit = ROUNDING * np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)


@pytest.mark.parametrize("name", CHANGES)
def test_each_policy_keeps_less_than_the_one_before_and_no_parameters(name):
    config, batch = small(name), 8
    sizes = []
    for remat in REMATS:
        forward, params = forward_keeping(config, remat, tokens(config, batch))
        residuals = jax.tree.leaves(jax.eval_shape(forward, params))
        sizes.append(sum(leaf.size for leaf in residuals))
        kernels = {leaf.shape for leaf in jax.tree.leaves(params["blocks"])}
        assert not kernels & {leaf.shape for leaf in residuals if leaf.ndim > 2}
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(REMATS)


def test_with_nothing_saveable_a_block_keeps_its_input():
    config, batch = small("default"), 32
    forward, params = forward_keeping(config, "nothing_saveable", tokens(config, batch))
    residuals = jax.tree.leaves(jax.eval_shape(forward, params))
    a_batch = batch * config.sequence_length
    large = [leaf.shape for leaf in residuals if leaf.size >= a_batch]
    inputs_NBLD = (2, batch, config.sequence_length, config.model_dim)
    assert sorted(large) == sorted([inputs_NBLD, (batch, config.sequence_length, 1)])
