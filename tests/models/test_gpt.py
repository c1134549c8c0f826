"""Properties of the model: causality, rotary positions, masked and wrong tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.attention import attend, rotate
from models.functional import cross_entropy, make_stage
from models.numerics import Numerics

NUMERICS = Numerics(compute=jnp.float32, parameter=jnp.float32)


@pytest.fixture(scope="session")
def apply(config, params):
    """All blocks but the last: ``apply(tokens_BL) -> y_BLD``."""
    blocks = jax.tree.map(lambda leaf: leaf[:4], params["blocks"])
    stage = {"embed": params["embed"], "blocks": blocks}
    return partial(jax.jit(make_stage(config, 0, 4).apply), stage)


def test_a_token_changes_nothing_before_it(config, apply, tokens_BL):
    changed_BL = tokens_BL.copy()
    changed_BL[:, 5] = (changed_BL[:, 5] + 1) % config.vocab_size
    before, after = apply(tokens_BL), apply(changed_BL)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.all(np.any(before[:, 5:] != after[:, 5:], axis=-1))


def test_sequences_of_a_microbatch_do_not_mix(config, apply, tokens_BL):
    others_BL = (tokens_BL + 1) % config.vocab_size
    others_BL[1] = tokens_BL[1]
    np.testing.assert_array_equal(apply(others_BL)[1], apply(tokens_BL)[1])


def test_rotated_products_depend_on_the_distance_only():
    generator = np.random.default_rng(0)
    q, k = generator.normal(size=(2, 8)).astype(np.float32)
    q_BLHK, k_BLHK = (jnp.tile(x[None, None, None], (1, 20, 1, 1)) for x in (q, k))
    q_LK = rotate(q_BLHK, 100.0, jnp.float32)[0, :, 0]
    k_LK = rotate(k_BLHK, 100.0, jnp.float32)[0, :, 0]
    products_LM = np.asarray(q_LK @ k_LK.T)
    for distance in (0, 1, 7):
        diagonal = np.diagonal(products_LM, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(products_LM[0, 0], q @ k, rtol=1e-5)
    assert np.ptp(products_LM[0]) > 0.1


def test_attention_is_jax_s_own_where_that_is_exact_enough():
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 9, 3, 4)).astype(np.float32)
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    found = attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), NUMERICS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_targets_below_zero_take_no_loss():
    generator = np.random.default_rng(0)
    logits_BLV = jnp.asarray(generator.normal(size=(2, 3, 5)), jnp.float32)
    targets_BL = np.array([[1, -1, 4], [-100, 0, 2]], np.int32)
    rows = np.asarray(logits_BLV)[targets_BL >= 0]
    expected = optax.softmax_cross_entropy_with_integer_labels(
        rows, targets_BL[targets_BL >= 0]
    ).sum()
    loss, gradient = jax.value_and_grad(cross_entropy)(logits_BLV, targets_BL)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert not np.any(gradient[targets_BL < 0])
    assert np.all(np.any(gradient[targets_BL >= 0], axis=-1))


def test_no_loss_tokens_at_all_is_zero_loss_and_zero_gradient(
    params, loss_and_gradients, tokens_BL
):
    nothing = np.full_like(tokens_BL, -1)
    loss, gradients = loss_and_gradients(params, tokens_BL, nothing)
    assert loss == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_huge_logits_lose_nothing():
    logits_BLV = jnp.asarray([[[1e4, -1e4, 0.0]]], jnp.float32)
    assert cross_entropy(logits_BLV, np.array([[1]])) == 2e4


@pytest.mark.parametrize("wrong", ["tokens above", "tokens below", "targets above"])
def test_ids_outside_the_vocabulary_give_nan(
    config, params, loss_and_gradients, tokens_BL, targets_BL, wrong
):
    if wrong == "tokens above":
        tokens_BL[0, 0] = config.vocab_size
    elif wrong == "tokens below":
        tokens_BL[0, 0] = -1
    else:
        targets_BL[0, 0] = config.vocab_size
    assert np.isnan(loss_and_gradients(params, tokens_BL, targets_BL)[0])
