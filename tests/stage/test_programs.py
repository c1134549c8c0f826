import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import functional


def forward_all(stages, inputs_BL):
    """Returns the inputs of each stage and the residuals of all but the last."""
    x, inputs, kept = (inputs_BL,), [], []
    for stage in stages[:-1]:
        inputs.append(x)
        x, residuals, finite = stage.programs.forward_keeping(
            stage.programs.cast(stage.params), x
        )
        assert finite
        kept.append(residuals)
    return [*inputs, x], kept


def add_microbatch(stages, sums, inputs_BL, targets_BL):
    """One microbatch there and back; returns its loss and the new sums."""
    inputs, kept = forward_all(stages, inputs_BL)
    sums, weights = list(sums), [s.programs.cast(s.params) for s in stages]
    grad, loss_sum, finite, sums[-1] = stages[-1].programs.loss_backward_adding(
        weights[-1], inputs[-1], targets_BL, sums[-1]
    )
    assert finite
    for index in reversed(range(len(stages) - 1)):
        grad, finite, sums[index] = stages[index].programs.backward_adding(
            weights[index], kept[index], grad, sums[index]
        )
        assert finite
    assert grad == ()
    return loss_sum, sums


def by_layer(stages, trees):
    layers = {}
    for stage, tree in zip(stages, trees, strict=True):
        layers.update(functional.to_layers(tree, stage.first_layer))
    return layers


def filled(tree, value):
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), tree)


def assert_close(actual, expected, rtol):
    """Compares trees; the tolerance is relative to each leaf's largest entry."""
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(
            a, e, rtol=0, atol=rtol * np.abs(np.asarray(e)).max()
        ),
        actual,
        expected,
    )


@pytest.fixture(scope="module")
def whole_gradient(make_microbatch, model):
    """``gradient(dtype) -> (loss_sum, gradients)`` of microbatches 0 and 1."""

    def gradient(dtype):
        config = dataclasses.replace(model, compute_dtype=dtype)
        whole = functional.make_stage(config, 0, config.num_layers)

        def loss(params):
            return sum(whole.loss(params, *make_microbatch(seed)) for seed in range(2))

        return jax.jit(jax.value_and_grad(loss))(jax.jit(whole.init)(7))

    return functools.cache(gradient)


@pytest.mark.parametrize("split", [(4,), (1, 3), (1, 1, 1, 1)])
def test_chained_stages_give_the_gradient_of_the_whole_model(
    split, make_stages, make_microbatch, whole_gradient
):
    stages = make_stages(split)
    sums, losses = [stage.programs.zeros() for stage in stages], []
    for seed in range(2):
        loss_sum, sums = add_microbatch(stages, sums, *make_microbatch(seed))
        losses.append(loss_sum)
    expected_loss, expected = whole_gradient("float32")
    assert float(sum(losses)) == pytest.approx(float(expected_loss), rel=1e-6)
    assert_close(by_layer(stages, sums), functional.to_layers(expected, 0), 1e-5)


def test_low_precision_stages_give_the_gradient_of_the_whole_model(
    make_stages, make_microbatch, whole_gradient
):
    stages = make_stages((1, 3), "bfloat16")
    weights = stages[0].programs.cast(stages[0].params)
    assert weights["blocks"]["attention"]["qkv"]["kernel"].dtype == jnp.bfloat16
    sums = [stage.programs.zeros() for stage in stages]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(sums)} == {"float32"}
    for seed in range(2):
        _, sums = add_microbatch(stages, sums, *make_microbatch(seed))
    _, expected = whole_gradient("bfloat16")
    assert_close(by_layer(stages, sums), functional.to_layers(expected, 0), 2e-2)


def test_uncounted_passes_give_the_same_gradient_of_the_input(
    make_stages, make_microbatch, make_activation
):
    body, last = make_stages((1, 1, 1, 1))[2:]
    _, targets_BL = make_microbatch(0)
    y, residuals, _ = body.programs.forward_keeping(body.params, (make_activation(0),))
    grad_y, loss_sum, finite = last.programs.loss_backward(last.params, y, targets_BL)
    counted = last.programs.loss_backward_adding(
        last.params, y, targets_BL, last.programs.zeros()
    )
    assert finite
    np.testing.assert_allclose(grad_y[0], counted[0][0], rtol=1e-4, atol=1e-8)
    assert float(loss_sum) == pytest.approx(float(counted[1]), rel=1e-6)
    assert float(last.programs.loss(last.params, y, targets_BL)) == pytest.approx(
        float(loss_sum), rel=1e-6
    )
    grad_x, finite = body.programs.backward(body.params, residuals, grad_y)
    counted = body.programs.backward_adding(
        body.params, residuals, grad_y, body.programs.zeros()
    )
    assert finite
    np.testing.assert_allclose(grad_x[0], counted[0][0], rtol=1e-4, atol=1e-8)


def test_non_finite_gradients_never_enter_the_sum(
    make_stages, make_microbatch, make_activation
):
    body, last = make_stages((1, 1, 1, 1))[2:]
    _, targets_BL = make_microbatch(0)
    x, poisoned = (make_activation(0),), (make_activation(0),)
    poisoned[0][1, 2, 3] = np.inf
    programs, params = body.programs, body.params

    ones = filled(programs.zeros(), 1)
    assert not programs.forward(params, poisoned)[1]
    _, residuals, finite = programs.forward_keeping(params, x)
    assert finite
    _, finite, total = programs.backward_adding(params, residuals, poisoned, ones)
    assert not finite
    assert all(jnp.all(leaf == 1) for leaf in jax.tree.leaves(total))

    programs, params = last.programs, last.params
    ones = filled(programs.zeros(), 1)
    *_, finite, total = programs.loss_backward_adding(
        params, poisoned, targets_BL, ones
    )
    assert not finite and not programs.loss_backward(params, poisoned, targets_BL)[2]
    assert all(jnp.all(leaf == 1) for leaf in jax.tree.leaves(total))


def test_a_sum_never_overflows(make_stages, make_activation):
    body = make_stages((1, 1, 1, 1))[1]
    _, residuals, _ = body.programs.forward_keeping(body.params, (make_activation(0),))
    huge = (make_activation(1) * np.float32(1e36),)
    full = filled(body.programs.zeros(), np.finfo(np.float32).max)
    grad_x, finite, total = body.programs.backward_adding(
        body.params, residuals, huge, full
    )
    assert not finite and jnp.all(jnp.isfinite(grad_x[0]))
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(total))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_residuals_hold_activations_and_no_parameters(
    dtype, make_stages, make_microbatch, model
):
    first = make_stages((1, 3), dtype)[0]
    weights = first.programs.cast(first.params)
    inputs_BL, _ = make_microbatch(0)
    _, residuals, _ = first.programs.forward_keeping(weights, (inputs_BL,))
    leaves = jax.tree.leaves(residuals)
    matrices = {
        leaf.size
        for leaf, is_matrix in zip(
            jax.tree.leaves(weights),
            jax.tree.leaves(functional.matrix_mask(weights)),
            strict=True,
        )
        if is_matrix
    }
    assert not matrices & {leaf.size for leaf in leaves}

    # Per token: what enters each norm and product (9 D), the feed-forward layer before
    # and after its GELU (2 F), attention before and after its softmax (2 H L), and a
    # few numbers per head and norm.
    length, heads = model.sequence_length, model.num_heads
    per_token = 9 * model.model_dim + 2 * model.ffn_dim + 2 * heads * (length + 4)
    assert sum(leaf.nbytes for leaf in leaves) < 4 * inputs_BL.size * per_token


def test_update_clips_by_the_norm_it_is_given(make_stages):
    stage = make_stages((1, 3))[0]
    gradients = filled(stage.params, 1)
    optimizer = optax.adamw(1e-2)
    scaled = jax.tree.map(lambda g: g / 8.0 * 0.5, gradients)
    updates, _ = jax.jit(optimizer.update)(
        scaled, jax.jit(optimizer.init)(stage.params), stage.params
    )
    expected = optax.apply_updates(stage.params, updates)
    params = stage.programs.copy(stage.params)
    params, _, weights, _ = stage.programs.update(
        params, stage.programs.init_optimizer(params), gradients, 8.0
    )
    assert weights is params
    assert_close(params, expected, 1e-6)


def test_update_casts_the_weights_anew(make_stages):
    stage = make_stages((1, 3), "bfloat16")[0]
    params = stage.programs.copy(stage.params)
    params, _, weights, _ = stage.programs.update(
        params,
        stage.programs.init_optimizer(params),
        filled(params, 1),
        1.0,
    )
    jax.tree.map(np.testing.assert_array_equal, weights, stage.programs.cast(params))
