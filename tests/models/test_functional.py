"""Stages against the whole model: initial bits, losses, gradients, layer names."""

import dataclasses
import hashlib

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from models import flops, functional
from models.functional import from_layers, make_stage, to_layers

CUTS = [(2, 3), (1, 3, 1)]


def stages_of(cut):
    """First layer and number of layers of each stage."""
    return list(zip(np.cumsum((0, *cut[:-1])).tolist(), cut, strict=True))


def restaged(params, cut):
    """Parameters of the whole model, cut into stages."""
    layers, stages = to_layers(params, 0), []
    for first, count in stages_of(cut):
        names = [f"layers.{first + index}" for index in range(count)]
        names += ["embed"] if first == 0 else []
        names += ["head"] if first + count == sum(cut) else []
        stages.append(from_layers({name: layers[name] for name in names}))
    return stages


def joined(stages, cut):
    layers = {}
    for stage, (first, _) in zip(stages, stages_of(cut), strict=True):
        layers |= to_layers(stage, first)
    return layers


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def count_flops(jaxpr) -> int:
    """FLOPs of all matrix products of a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            x, result = equation.invars[0].aval, equation.outvars[0].aval
            summed = np.prod([x.shape[axis] for axis in contracted])
            total += int(2 * np.prod(result.shape) * summed)
        times = equation.params.get("length", 1)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += times * count_flops(inner)
    return total


def test_initial_bits_do_not_depend_on_the_partition(config, params):
    cut = (1, 3, 1)
    stages = [make_stage(config, *stage).init(7) for stage in stages_of(cut)]
    assert_equal(joined(stages, cut), to_layers(params, 0))


def test_initial_bits_stay_what_they_are(params):
    """Peers with other devices or versions of jax start from the same model."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(to_layers(params, 0)):
        digest.update(np.asarray(leaf).tobytes())
    assert digest.hexdigest()[:16] == "c1f97458abd0e8f3"


def test_layers_seeds_and_tables_have_streams_of_their_own(whole, params):
    layers = to_layers(params, 0) | {
        f"other {name}": tree for name, tree in to_layers(whole.init(8), 0).items()
    }
    starts = [
        np.asarray(leaf).ravel()[:4] / np.std(leaf)
        for leaf in jax.tree.leaves(layers)
        if leaf.ndim == 2
    ]
    assert len({tuple(np.round(start, 1).tolist()) for start in starts}) == len(starts)


def test_deviations_keep_products_as_large_as_what_goes_in(config):
    wide = dataclasses.replace(config, model_dim=128, ffn_dim=256, vocab_size=300)
    layers = to_layers(make_stage(wide, 0, 5).init(0), 0)
    block = layers["layers.3"]
    residual = 1 / np.sqrt(2 * wide.num_layers)
    for array, deviation in (
        (layers["embed"]["embedding"], 1.0),
        (layers["head"]["output"]["kernel"], 1 / np.sqrt(128)),
        (block["attention"]["qkv"]["kernel"], 1 / np.sqrt(128)),
        (block["feed_forward"]["input"]["kernel"], 1 / np.sqrt(128)),
        (block["attention"]["output"]["kernel"], residual / np.sqrt(128)),
        (block["feed_forward"]["output"]["kernel"], residual / np.sqrt(256)),
    ):
        assert np.std(array) == pytest.approx(deviation, rel=0.02)
        assert abs(np.mean(array)) < 0.03 * deviation
    assert_equal(block["attention_norm"]["scale"], np.ones(128, np.float32))


@pytest.mark.parametrize("cut", CUTS)
def test_chained_stages_are_the_whole_model(
    config, params, loss_and_gradients, tokens_BL, targets_BL, cut
):
    *body, last = (make_stage(config, *stage) for stage in stages_of(cut))

    def chained(stages):
        x = tokens_BL
        for functions, stage in zip(body, stages[:-1], strict=True):
            x = functions.apply(stage, x)
        return last.loss(stages[-1], x, targets_BL)

    stages = restaged(params, cut)
    loss, gradients = jax.jit(jax.value_and_grad(chained))(stages)
    expected_loss, expected = loss_and_gradients(params, tokens_BL, targets_BL)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        joined(gradients, cut),
        to_layers(expected, 0),
    )


def test_layers_split_and_join(params):
    head = restaged(params, (2, 3))[1]
    layers = to_layers(head, 2)
    assert sorted(layers) == ["head", "layers.2", "layers.3", "layers.4"]
    assert_equal(from_layers(layers), head)
    on_host = from_layers(jax.tree.map(np.asarray, layers))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host))
    assert_equal(on_host, head)


def test_the_tenth_layer_comes_after_the_ninth():
    params = {"blocks": {"scale": np.arange(12.0)}}
    assert_equal(from_layers(to_layers(params, 0)), params)


def test_counts_of_parameters_and_flops(config, whole, params):
    sizes = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert flops.parameter_count(config) == sizes
    shape = (1, config.sequence_length)
    program = jax.make_jaxpr(whole.loss)(
        params, np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    )
    counted = flops.layer_flops(config)
    per_token = counted.embedding + 5 * counted.block + counted.head
    assert count_flops(program.jaxpr) == per_token * config.sequence_length


def test_cast_parameters_give_the_same_bits_as_masters(
    config, params, tokens_BL, targets_BL
):
    mixed = dataclasses.replace(config, compute_dtype="bfloat16")
    cast = functional.cast_params(mixed, params)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(cast["blocks"])}
    assert kinds == {"bfloat16", "float32"}
    loss = jax.jit(make_stage(mixed, 0, 5).loss)
    found = loss(cast, tokens_BL, targets_BL)
    assert found == loss(params, tokens_BL, targets_BL)
    assert found.dtype == jnp.float32
    y_BLD = jax.eval_shape(
        make_stage(mixed, 0, 2).apply, restaged(params, (2, 3))[0], tokens_BL
    )
    assert y_BLD.dtype == jnp.bfloat16


def test_bfloat16_is_near_float32(
    config, params, loss_and_gradients, tokens_BL, targets_BL
):
    mixed = dataclasses.replace(config, compute_dtype="bfloat16")
    gradient = jax.jit(jax.grad(make_stage(mixed, 0, 5).loss))

    def near(a, b):
        assert a.dtype == b.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)

    jax.tree.map(
        near,
        gradient(params, tokens_BL, targets_BL),
        loss_and_gradients(params, tokens_BL, targets_BL)[1],
    )


def test_residuals_hold_no_parameters_and_few_activations(config, params, tokens_BL):
    functions = make_stage(config, 0, 3)
    long_BL = np.tile(tokens_BL, (10, 1))

    @jax.jit
    def forward(stage):
        y, vjp = jax.vjp(lambda stage: functions.apply(stage, long_BL), stage)
        vjp.args_res[0] = None
        return y, vjp

    _, vjp = jax.eval_shape(forward, restaged(params, (3, 2))[0])
    residuals = sum(leaf.size for leaf in jax.tree.leaves(vjp))
    # x before either half, both norms of it, q, k, v, what attention mixed; input and
    # gate of the feed-forward and their product. Beside them: rotations, the mask,
    # scales, the tokens.
    per_token = 3 * (8 * config.model_dim + 3 * config.ffn_dim)
    assert residuals < long_BL.size * (per_token + 2) + 1000


def test_matrices_are_told_from_scales_by_name(params):
    mask = functional.matrix_mask(params)
    assert mask["embed"]["embedding"] and mask["head"]["output"]["kernel"]
    assert mask["blocks"]["attention"]["qkv"]["kernel"]
    assert not mask["blocks"]["attention_norm"]["scale"]
    assert not mask["head"]["norm"]["scale"]


def test_auto_is_bfloat16_on_accelerators_only(config):
    assert functional.resolve_dtype(config, "gpu") == jnp.bfloat16
    assert functional.resolve_dtype(config, "tpu") == jnp.bfloat16
    assert functional.resolve_dtype(config, "cpu") == jnp.float32
    fixed = dataclasses.replace(config, compute_dtype="float32")
    assert functional.resolve_dtype(fixed, "gpu") == jnp.float32


def test_float64_without_64_bit_mode_says_what_to_set(config):
    wide = dataclasses.replace(config, parameter_dtype="float64")
    with pytest.raises(ValueError, match="JAX_ENABLE_X64=1"):
        make_stage(wide, 0, 5)
