"""What leaves the jitted programs is encoded; what comes in is any bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_jax.stage.passes import LARGEST_GRADIENT

MIXES = [("int8", "dynamic8"), ("dynamic8", "int8"), ("bfloat16", "int8")]
EIGHT_BIT = [("int8", "int8"), ("dynamic8", "dynamic8")]


def specs_of(arrays):
    return tuple((array.dtype.name, array.shape) for array in arrays)


def like(specs):
    return tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(name)) for name, shape in specs)


@pytest.mark.parametrize("wires", MIXES)
def test_only_encoded_arrays_leave_the_device(wires, make_stages):
    """Neighbours speak to each other in the codecs of their boundary."""
    stages = make_stages((1,) * 4, "float32", wires)
    first, body, _, last = (stage.programs for stage in stages)
    weights = [jax.eval_shape(s.programs.cast, s.params) for s in stages]
    tokens_BL = like([body.targets_spec])[0]
    x, grad_y = like(body.input_specs), like(body.gradient_specs)

    assert first.gradient_specs == body.gradient_specs != body.input_specs
    assert last.input_specs == body.input_specs and last.gradient_specs == ()
    y, residuals, _ = jax.eval_shape(body.forward_keeping, weights[1], x)
    assert specs_of(y) == last.input_specs
    assert specs_of(jax.eval_shape(body.forward, weights[1], x)[0]) == last.input_specs
    total, last_total = jax.eval_shape(body.zeros), jax.eval_shape(last.zeros)
    for passed, *arguments in (
        (body.backward, weights[1], residuals, grad_y),
        (body.backward_adding, weights[1], residuals, grad_y, total),
        (last.loss_backward, weights[3], x, tokens_BL),
        (last.loss_backward_adding, weights[3], x, tokens_BL, last_total),
    ):
        grad_x = jax.eval_shape(passed, *arguments)[0]
        assert specs_of(grad_x) == first.gradient_specs


def draw_arrays(data, specs, scale=None):
    """Any bytes; or any codes with this scale in every block."""
    drawn = []
    for name, shape in specs:
        dtype = jnp.dtype(name)
        size = int(np.prod(shape)) * dtype.itemsize
        raw = data.draw(st.binary(min_size=size, max_size=size))
        array = np.frombuffer(raw, dtype).reshape(shape)
        is_scale = jnp.issubdtype(dtype, jnp.floating)
        drawn.append(np.full(shape, scale, dtype) if is_scale and scale else array)
    return tuple(drawn)


def assert_sound(finite, total, before):
    """A gradient entered the sum if and only if it was announced, and is bounded."""
    for new, old in zip(jax.tree.leaves(total), jax.tree.leaves(before), strict=True):
        if finite:
            assert np.abs(np.asarray(new) - old).max() < 2 * LARGEST_GRADIENT
        else:
            np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("wires", EIGHT_BIT)
@pytest.mark.parametrize("scale", [None, 1e-38, 1.0, 1e30, 3e38, -1.0, np.inf, np.nan])
@given(data=st.data())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_no_bytes_of_a_peer_make_the_sum_other_than_finite(
    wires, scale, make_stages, make_microbatch, data
):
    body, last = make_stages((1,) * 4, "float32", wires)[2:]
    x = draw_arrays(data, body.programs.input_specs, scale)
    grad_y = draw_arrays(data, body.programs.gradient_specs, scale)
    _, targets_BL = make_microbatch(0)
    is_absurd = scale is not None and not np.isfinite(scale)

    def ones(stage):
        return jax.tree.map(jnp.ones_like, stage.programs.zeros())

    before = jax.device_get(ones(last))
    *_, finite, total = last.programs.loss_backward_adding(
        last.params, x, targets_BL, ones(last)
    )
    assert_sound(finite, total, before)
    assert not (is_absurd and finite)

    y, residuals, finite = body.programs.forward_keeping(body.params, x)
    assert not (is_absurd and finite)
    if finite:
        assert all(bool(jnp.all(jnp.isfinite(array))) for array in y)
    before = jax.device_get(ones(body))
    _, finite, total = body.programs.backward_adding(
        body.params, residuals, grad_y, ones(body)
    )
    assert_sound(finite, total, before)
    assert not (is_absurd and finite)


@pytest.mark.parametrize("wires", EIGHT_BIT)
def test_a_stage_that_gives_nan_says_so_in_8_bits(wires, make_stages, make_microbatch):
    """Codes have no room for it: it must show in the scales."""
    first = make_stages((1,) * 4, "float32", wires)[0]
    inputs_BL, _ = make_microbatch(0)
    broken = jax.tree.map(jnp.copy, first.params)
    broken["embed"] = broken["embed"].at[inputs_BL[1, 2], 3].set(jnp.nan)
    for params, expected in ((first.params, True), (broken, False)):
        assert bool(first.programs.forward(params, (inputs_BL,))[1]) == expected
        _, _, finite = first.programs.forward_keeping(params, (inputs_BL,))
        assert bool(finite) == expected
