import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import functional
from models.config import GPTConfig
from swarm_jax.stage.codec import make_boundary_codec
from swarm_jax.stage.programs import make_stage_programs


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


def joined(trees):
    """The stages' trees as one of the whole model."""
    blocks = [tree["blocks"] for tree in trees]
    return {
        "blocks": jax.tree.map(lambda *leaves: np.concatenate(leaves), *blocks),
        "embed": trees[0]["embed"],
        "head": trees[-1]["head"],
    }


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
def whole_gradient(make_microbatch, toy):
    """Loss and gradient of microbatches 0 and 1, by plain ``jax.grad``."""

    def loss(params):
        return sum(toy.loss(params, *make_microbatch(seed)) for seed in range(2))

    return jax.jit(jax.value_and_grad(loss))(toy.init(7))


@pytest.mark.parametrize("split", [(4,), (1, 3), (1, 1, 1, 1)])
def test_chained_stages_give_the_gradient_of_the_whole_model(
    split, make_stages, make_microbatch, whole_gradient
):
    stages = make_stages(split)
    sums, losses = [stage.programs.zeros() for stage in stages], []
    for seed in range(2):
        loss_sum, sums = add_microbatch(stages, sums, *make_microbatch(seed))
        losses.append(loss_sum)
    expected_loss, expected = whole_gradient
    assert float(sum(losses)) == pytest.approx(float(expected_loss), rel=1e-6)
    assert_close(joined(sums), expected, 1e-5)


def test_low_precision_stages_give_the_gradient_of_the_whole_model(
    make_stages, make_microbatch, whole_gradient
):
    stages = make_stages((1, 3), "bfloat16")
    weights = stages[0].programs.cast(stages[0].params)
    assert weights["blocks"][0]["kernel"].dtype == jnp.bfloat16
    sums = [stage.programs.zeros() for stage in stages]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(sums)} == {"float32"}
    for seed in range(2):
        _, sums = add_microbatch(stages, sums, *make_microbatch(seed))
    trees = [s.programs.to_params(total) for s, total in zip(stages, sums, strict=True)]
    assert_close(joined(trees), whole_gradient[1], 5e-2)


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


def test_a_gradient_that_could_overflow_the_sum_is_not_counted(
    make_stages, make_activation
):
    body = make_stages((1, 1, 1, 1))[1]
    _, residuals, _ = body.programs.forward_keeping(body.params, (make_activation(0),))
    ones = filled(body.programs.zeros(), 1)
    huge = (make_activation(1) * np.float32(1e36),)
    grad_x, finite, total = body.programs.backward_adding(
        body.params, residuals, huge, ones
    )
    assert not finite and jnp.all(jnp.isfinite(grad_x[0]))
    assert all(jnp.all(leaf == 1) for leaf in jax.tree.leaves(total))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_residuals_hold_activations_and_no_parameters(dtype):
    """Of the real model; shapes are enough."""
    batch, length, width, hidden, heads, layers = 3, 10, 24, 40, 2, 2
    model = GPTConfig(
        num_layers=layers + 1,
        model_dim=width,
        num_heads=heads,
        ffn_dim=hidden,
        vocab_size=29,
        sequence_length=length,
        compute_dtype=dtype,
    )
    functions = functional.make_stage(model, 0, layers)
    programs = make_stage_programs(
        functions,
        functools.partial(functional.cast_params, model),
        optax.adamw(1e-2),
        input_codec=None,
        output_codec=make_boundary_codec((dtype,) * 2, (batch, length, width), dtype),
        tokens_shape=(batch, length),
        clip_norm=None,
    )
    weights = jax.eval_shape(lambda: programs.cast(functions.init(0)))
    tokens_BL = jax.ShapeDtypeStruct((batch, length), np.int32)
    _, residuals, _ = jax.eval_shape(programs.forward_keeping, weights, (tokens_BL,))
    leaves = jax.tree.leaves(residuals)
    params = jax.eval_shape(functions.init, 0)
    is_matrix = jax.tree.leaves(functional.matrix_mask(params))
    matrices = itertools.compress(jax.tree.leaves(params), is_matrix)
    sizes = {leaf.size // blocks for leaf in matrices for blocks in (1, layers)}
    assert not sizes & {leaf.size for leaf in leaves}

    # Per token and block: what enters each norm and product (9 D), the feed-forward
    # layer before and after its GELU (2 F), attention before and after its softmax
    # (2 H L), and a few numbers per head and norm.
    numbers = 9 * width + 2 * hidden + 2 * heads * (length + 4)
    bound = 4 * layers * batch * length * numbers
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) < bound


def test_update_clips_by_the_norm_it_is_given(make_stages):
    """Seen in Adam's moments: its first update is the same for any scale."""
    stage = make_stages((1, 3))[0]
    gradients = filled(stage.params, 1)
    optimizer = optax.adamw(1e-2)
    scaled = jax.tree.map(lambda g: g / 8.0 * 0.5, gradients)
    updates, expected_state = jax.jit(optimizer.update)(
        scaled, jax.jit(optimizer.init)(stage.params), stage.params
    )
    expected = optax.apply_updates(stage.params, updates)
    params = stage.programs.copy(stage.params)
    params, opt_state, weights, _ = stage.programs.update(
        params, stage.programs.init_optimizer(params), gradients, 8.0
    )
    assert weights is params
    assert_close((params, opt_state), (expected, expected_state), 1e-6)


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
