"""Every choice of GPTConfig: sizes, stages, padding, residuals, what a block is."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from models import flops
from models.attention import attend
from models.boundary import Compress
from models.config import GPTConfig
from models.functional import (
    boundaries_of,
    cast_params,
    from_layers,
    make_stage,
    matrix_mask,
    tied_layer,
    to_layers,
)
from models.gpt import sinusoids
from models.numerics import Numerics
from models.pure import Pure
from tests.models.test_functional import count_flops

NUMERICS = Numerics(compute=jnp.float32, parameter=jnp.float32)

BASE = GPTConfig(
    num_layers=4,
    model_dim=16,
    num_heads=4,
    ffn_dim=24,
    vocab_size=37,
    sequence_length=12,
)
CHOICES = {
    "modern": {"feed_forward": "swiglu", "num_kv_heads": 2, "qkv_biases": True},
    "bottleneck": {
        "boundaries": (1, 3),
        "boundary": "bottleneck",
        "boundary_factor": 4,
        "positions": "sinusoidal",
    },
    "maxout": {
        "boundaries": (2,),
        "boundary": "maxout",
        "boundary_factor": 2,
        "norm": "layer",
        "feed_forward": "relu",
        "block_repeats": 2,
        "biases": True,
        "qkv_biases": False,
    },
    "albert": {
        "boundaries": (1, 2, 3),
        "norm": "layer",
        "biases": True,
        "positions": "learned",
        "embedding_dim": 8,
        "embedding_norm": True,
        "head": "factorised",
        "head_bias": True,
        "block_repeats": 3,
        "vocab_multiple": 16,
    },
    "tied": {
        "tied_head": True,
        "head_bias": True,
        "embedding_scale": 4.0,
        "vocab_multiple": 8,
        "boundaries": (2,),
    },
    "tied and factorised": {
        "tied_head": True,
        "embedding_dim": 8,
        "head": "factorised",
        "num_kv_heads": 1,
    },
}
CUTS = {
    "modern": (1, 3),
    "bottleneck": (2, 1, 1),
    "maxout": (2, 2),
    "albert": (1, 2, 1),
    "tied": (2, 2),
    "tied and factorised": (1, 2, 1),
}
"""At boundary layers and elsewhere."""


def config_of(choice):
    return dataclasses.replace(BASE, **CHOICES[choice])


@functools.cache
def stage_of(choice, first=0, count=4):
    return make_stage(config_of(choice), first, count)


@functools.cache
def start(choice):
    """Parameters of the whole model as they begin, in numpy."""
    return jax.device_get(stage_of(choice).init(7))


def drawn(functions):
    """Parameters of a whole model without its own initial values: quicker."""
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        mean, deviation = float(path[-1].key == "scale"), 0.25
        values = generator.normal(mean, deviation, size=leaf.shape)
        return values.astype(leaf.dtype)

    shapes = jax.eval_shape(lambda: functions.init(7))
    return jax.tree.map_with_path(draw, shapes)


@functools.cache
def initial(choice):
    return drawn(stage_of(choice))


@functools.cache
def gradients_of(choice):
    """Loss and gradients, compiled once: ``f(params, tokens_BL, targets_BL)``."""
    return jax.jit(jax.value_and_grad(stage_of(choice).loss))


def microbatch(seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 37, (2, 3, 12)).astype(np.int32)


def assert_near(found, expected):
    """To rounding, beside the largest entry."""
    error, largest = np.max(np.abs(found - expected)), np.max(np.abs(expected))
    assert error < 2e-5 * largest


def stages_of(choice, cut):
    """Functions, first layer and parameters of each stage."""
    layers, first, stages = to_layers(initial(choice), 0), 0, []
    layers["tied"] = tied_layer(layers["embed"])
    for count in cut:
        functions = stage_of(choice, first, count)
        names = jax.eval_shape(
            lambda f=functions, first=first: to_layers(f.init(7), first)
        )
        params = from_layers({name: layers[name] for name in names})
        stages.append((functions, first, params))
        first += count
    return stages


@pytest.mark.parametrize("choice", CHOICES)
def test_counts_of_parameters_and_flops(choice):
    config, params = config_of(choice), initial(choice)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert flops.parameter_count(config) == sizes
    tokens_BL, targets_BL = microbatch()[:, :1]
    program = jax.make_jaxpr(stage_of(choice).loss)(params, tokens_BL, targets_BL)
    counted = flops.layer_flops(config)
    boundaries = len(config.boundaries) * counted.boundary
    per_token = counted.embedding + 4 * counted.block + boundaries + counted.head
    assert count_flops(program.jaxpr) == per_token * config.sequence_length


@pytest.mark.parametrize("choice", CHOICES)
def test_every_parameter_has_a_gradient(choice):
    loss, gradients = gradients_of(choice)(initial(choice), *microbatch())
    assert np.isfinite(loss)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert np.any(leaf), path


@pytest.mark.parametrize(("choice", "cut"), CUTS.items())
def test_chained_stages_are_the_whole_model(choice, cut):
    tokens_BL, targets_BL = microbatch()
    *body, last = stages_of(choice, cut)
    config = config_of(choice)

    def chained(all_params):
        x = tokens_BL
        for (functions, first, _), params, count in zip(
            body, all_params[:-1], cut, strict=False
        ):
            x = functions.apply(params, x)
            assert x.shape == (3, 12, config.width_after(first + count))
        return last[0].loss(all_params[-1], x, targets_BL)

    params = [params for _, _, params in (*body, last)]
    loss, gradients = jax.jit(jax.value_and_grad(chained))(params)
    expected_loss, expected = gradients_of(choice)(initial(choice), *microbatch())
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    found = {}
    for (_, first, _), tree in zip((*body, last), gradients, strict=True):
        assert not found.keys() & to_layers(tree, first).keys()
        found |= to_layers(tree, first)
    if "tied" in found:
        # Of a table that is on two stages each has a part of the gradient.
        found["embed"]["embedding"] += found.pop("tied")["embedding"]
    jax.tree.map(assert_near, found, to_layers(expected, 0))


@pytest.mark.parametrize("choice", ["bottleneck", "albert", "tied and factorised"])
def test_initial_bits_do_not_depend_on_the_partition(choice):
    whole, found, first = to_layers(start(choice), 0), {}, 0
    if config_of(choice).tied_head:
        whole["tied"] = tied_layer(whole["embed"])
    for count in CUTS[choice]:
        found |= to_layers(stage_of(choice, first, count).init(7), first)
        first += count
    assert found.keys() == whole.keys()
    jax.tree.map(np.testing.assert_array_equal, found, whole)


def test_biases_start_at_zero_but_for_those_of_boundaries():
    for choice in ("bottleneck", "albert"):
        for path, leaf in jax.tree.leaves_with_path(start(choice)):
            *_, module, name = (key.key for key in path)
            of_a_boundary = path[0].key in ("compress", "expand")
            starts_elsewhere = of_a_boundary and module in ("input", "output")
            assert name != "bias" or np.any(leaf) == starts_elsewhere, path


def test_boundary_matrices_start_as_torch_linear_does():
    wide = dataclasses.replace(
        config_of("bottleneck"), model_dim=256, num_layers=2, boundaries=(1,)
    )
    params = make_stage(wide, 0, 2).init(0)
    for half, name, inputs in (
        ("compress", "input", 256),
        ("expand", "output", 64),
    ):
        for leaf in params[half]["1"][name].values():
            bound = inputs**-0.5
            assert np.max(np.abs(leaf)) <= bound
            assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.15)


def test_a_boundary_is_all_that_passes():
    """The stream after a bottleneck is W2 z + b2, with no way around it."""
    (functions, _, sender), (_, _, receiver) = stages_of("bottleneck", (3, 1))
    assert receiver["expand"]["0"]["output"]["kernel"].shape == (4, 16)
    norm = sender["compress"]["3"]["output_norm"]
    silent = dict.fromkeys(norm, np.zeros(4, np.float32))
    muted = {"3": sender["compress"]["3"] | {"output_norm": silent}}
    muted = sender | {"compress": sender["compress"] | muted}
    apply = jax.jit(functions.apply)
    assert np.any(apply(sender, microbatch()[0]))
    assert not np.any(apply(muted, microbatch()[0]))


def test_maxout_takes_the_largest_of_adjacent_channels():
    compress = Pure.of(Compress, config_of("maxout"), NUMERICS)
    params = compress.init(jax.random.key(0))
    y_BLD = np.random.default_rng(0).normal(size=(1, 2, 16)).astype(np.float32)

    def norm(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5)

    normed = norm(y_BLD)
    expected = norm(np.maximum(normed[..., 0::2], normed[..., 1::2]))
    np.testing.assert_allclose(compress.apply(params, y_BLD), expected, atol=1e-5)


@pytest.mark.parametrize("choice", ["albert", "tied"])
def test_no_loss_and_no_gradient_sees_the_padding(choice):
    config, params = config_of(choice), initial(choice)
    rows = slice(config.vocab_size, config.padded_vocab_size)
    other = jax.tree.map(np.array, params)
    other["embed"]["embedding"][rows] = 1e3
    other["head"]["output"]["bias"][rows] = 1e3
    if not config.tied_head:
        other["head"]["output"]["kernel"][:, rows] = 1e3
    loss, gradients = gradients_of(choice)(params, *microbatch())
    assert gradients_of(choice)(other, *microbatch())[0] == loss
    assert gradients["embed"]["embedding"].shape[0] == config.padded_vocab_size
    assert not np.any(gradients["embed"]["embedding"][rows])
    assert not np.any(gradients["head"]["output"]["bias"][rows])


@pytest.mark.parametrize("wrong", ["token", "target"])
def test_ids_of_the_padding_are_outside_the_vocabulary(wrong):
    arrays = microbatch()
    arrays[int(wrong == "target"), 0, 0] = 37
    assert np.isnan(gradients_of("albert")(initial("albert"), *arrays)[0])


def test_repeats_are_layers_with_equal_parameters():
    shared = dataclasses.replace(BASE, num_layers=2, block_repeats=3)
    unshared = dataclasses.replace(BASE, num_layers=6)
    params = drawn(make_stage(shared, 0, 2))
    repeated = params | {
        "blocks": jax.tree.map(lambda leaf: np.repeat(leaf, 3, 0), params["blocks"])
    }
    loss, gradients = jax.jit(jax.value_and_grad(make_stage(shared, 0, 2).loss))(
        params, *microbatch()
    )
    expected_loss, expected = jax.jit(
        jax.value_and_grad(make_stage(unshared, 0, 6).loss)
    )(repeated, *microbatch())
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    summed = jax.tree.map(
        lambda leaf: np.reshape(leaf, (2, 3, *leaf.shape[1:])).sum(1),
        expected["blocks"],
    )
    jax.tree.map(assert_near, gradients["blocks"], summed)


def test_outputs_start_smaller_the_more_often_blocks_are_applied():
    kernel = start("albert")["blocks"]["attention"]["output"]["kernel"]
    assert np.std(kernel) == pytest.approx((2 * 4 * 3 * 16) ** -0.5, rel=0.05)


def test_grouped_queries_are_jax_s_own():
    generator = np.random.default_rng(0)
    q = generator.normal(size=(2, 9, 6, 4)).astype(np.float32)
    k, v = generator.normal(size=(2, 2, 9, 2, 4)).astype(np.float32)
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    found = attend(*map(jnp.asarray, (q, k, v)), NUMERICS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_sinusoids_are_those_of_the_formula():
    waves_LE = sinusoids(30, 6)
    for position, i in ((0, 0), (7, 1), (29, 2)):
        angle = position / 10_000 ** (2 * i / 6)
        np.testing.assert_allclose(waves_LE[position, 2 * i], np.sin(angle))
        np.testing.assert_allclose(waves_LE[position, 2 * i + 1], np.cos(angle))


@pytest.mark.parametrize("choice", ["bottleneck", "maxout", "albert"])
def test_residuals_hold_no_parameters(choice):
    config = config_of(choice)
    (functions, _, params), _ = stages_of(choice, (3, 1))
    tokens_BL = np.tile(microbatch()[0], (10, 1))

    @jax.jit
    def forward(params):
        y, vjp = jax.vjp(lambda params: functions.apply(params, tokens_BL), params)
        vjp.args_res[0] = None
        return y, vjp

    def sizes(tree, rows):
        """Of matrices; of the blocks' those of so many blocks at once."""
        mask = matrix_mask(tree)
        kept = jax.tree.map(lambda x, keep: x.size if keep else 0, tree, mask)
        kept["blocks"] = jax.tree.map(lambda size: size // 3 * rows, kept["blocks"])
        return set(jax.tree.leaves(kept)) - {0}

    _, vjp = jax.eval_shape(forward, params)
    residuals = {leaf.size for leaf in jax.tree.leaves(vjp)}
    # Tables of positions and masks are constants: no tensor of a parameter's size.
    constants = {config.sequence_length**2, config.sequence_length * config.table_dim}
    matrices = set().union(*(sizes(params, rows) for rows in (1, 2, 3)))
    assert not residuals & (matrices - constants)


def test_who_decays_and_who_is_cast():
    params = initial("albert")
    mask = matrix_mask(params)
    assert mask["embed"]["positions"] and mask["embed"]["projection"]["kernel"]
    assert not mask["embed"]["projection"]["bias"] and not mask["embed"]["norm"]["bias"]
    mixed = dataclasses.replace(config_of("albert"), compute_dtype="bfloat16")
    cast = cast_params(mixed, params)
    for path, leaf in jax.tree.leaves_with_path(cast):
        assert (leaf.dtype == jnp.bfloat16) == (path[-1].key == "kernel"), path
    loss = jax.jit(make_stage(mixed, 0, 4).loss)
    assert loss(cast, *microbatch()) == loss(params, *microbatch())
    near = gradients_of("albert")(params, *microbatch())[0]
    assert float(loss(cast, *microbatch())) == pytest.approx(float(near), rel=0.02)


def test_stages_with_equal_boundaries_have_parameters_of_one_structure():
    config = dataclasses.replace(
        config_of("bottleneck"), num_layers=8, boundaries=(2, 4, 6)
    )
    body, other = ((2, 2), (4, 2))
    assert boundaries_of(config, *body) == boundaries_of(config, *other) == ((2,), (0,))
    assert boundaries_of(config, 3, 2) == ((1,), (1,))
    shapes = [
        jax.eval_shape(lambda at=at: make_stage(config, *at).init(0))
        for at in (body, other)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("stage", "path"),
    [
        ((0, 1), ("embed", "embedding")),
        ((1, 2), None),
        ((3, 1), ("tied", "embedding")),
        ((0, 4), None),
    ],
)
def test_the_ends_say_what_of_them_is_tied(stage, path):
    functions = stage_of("tied and factorised", *stage)
    assert functions.tied == path
    assert ("tied" in jax.eval_shape(functions.init, 0)) == (stage == (3, 1))
