"""The compression studies: every variant loads, builds, and sends what it says."""

import jax
import jax.numpy as jnp
import pytest

from configs import compression, compression_small
from models.flops import parameter_count
from scripts import wiring
from swarm_jax.launcher.variations import make_variations

BASELINE = 253_011_968
"""Parameters of the prototype's model: 16 blocks, and a table of 50,264 tokens."""

COMPRESSORS = {
    "bottleneck_2x": 1_053_184,
    "bottleneck_4x": 528_128,
    "maxout_2x": 528_384,
    "maxout_4x": 265_728,
}
"""Parameters of one boundary layer of the prototype."""


def variants(config_file):
    return {v.label: v.config for v in make_variations(config_file, [], [], "all")}


SMALL = variants("configs/compression_small.py")
FULL = variants("configs/compression.py")
NAMED = [f"{kind}_{n}stages" for kind in COMPRESSORS for n in (2, 4)]


def test_the_variants_are_those_of_the_study():
    narrow = [f"{name}_dynamic8" for name in NAMED]
    eight_bit = ["dynamic8_2stages", "dynamic8_4stages"]
    assert set(FULL) == {"baseline", *eight_bit, *NAMED, *narrow}
    small = {"bfloat16_4stages", "int8_4stages", "shared_4stages"}
    assert set(SMALL) == set(FULL) | small


@pytest.mark.parametrize("name", ["baseline", *NAMED])
def test_full_size_has_the_prototypes_parameters(name):
    config = FULL[name]
    functions, *_ = wiring.make_control(config)
    params = jax.eval_shape(lambda: functions.init(0))
    tokens_BL = jax.ShapeDtypeStruct((4, 512), jnp.int32)
    assert jax.eval_shape(functions.loss, params, tokens_BL, tokens_BL).shape == ()
    kind, _, stages = name.rpartition("_")
    expected = BASELINE
    if kind:
        expected += COMPRESSORS[kind] * (int(stages[0]) - 1)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    assert parameter_count(config.model) == expected


@pytest.mark.parametrize("name", SMALL)
def test_small_variants_build_stage_by_stage(name):
    config = SMALL[name]
    shape_BL = (config.swarm.microbatch_size, config.model.sequence_length)
    x = tokens_BL = jax.ShapeDtypeStruct(shape_BL, jnp.int32)
    factor = 4 if "_4x" in name else 2 if "_2x" in name else 1
    for stage in range(config.swarm.num_stages):
        functions = wiring.make_functions(config, stage)
        params = jax.eval_shape(lambda functions=functions: functions.init(0))
        if not functions.is_last:
            x = jax.eval_shape(functions.apply, params, x)
            assert x.shape == (*shape_BL, 256 // factor)
    assert jax.eval_shape(functions.loss, params, x, tokens_BL).shape == ()


@pytest.mark.parametrize(
    "name",
    ["baseline", "int8_4stages", "maxout_4x_2stages_dynamic8", "shared_4stages"],
)
def test_small_variants_have_a_gradient_through_their_wires(name):
    config = SMALL[name]
    functions, *_ = wiring.make_control(config, simulate_wire=True)
    params = jax.eval_shape(lambda: functions.init(0))
    tokens_BL = jax.ShapeDtypeStruct((32, 256), jnp.int32)
    gradients = jax.eval_shape(jax.grad(functions.loss), params, tokens_BL, tokens_BL)
    assert gradients == params


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baseline", 4 * 256),
        ("bfloat16_4stages", 2 * 256),
        ("dynamic8_4stages", 256 * (1 + 4 / 4096)),
        ("bottleneck_2x_2stages", 4 * 128),
        ("maxout_4x_4stages", 4 * 64),
        ("maxout_4x_4stages_dynamic8", 64 * (1 + 4 / 4096)),
    ],
)
def test_bytes_that_cross_a_boundary(name, expected):
    figures = wiring.bytes_on_wires(SMALL[name])
    assert list(figures.values()) == [expected, expected]


def test_each_way_has_its_own_wire():
    config = compression_small.variants()["maxout_4x_4stages"]
    config.swarm.gradient_wire = "bfloat16"
    assert wiring.bytes_on_wires(config) == {
        "activation_bytes_per_token_per_boundary": 4 * 64,
        "gradient_bytes_per_token_per_boundary": 2 * 64,
    }
    assert wiring.bytes_on_wires(FULL["baseline"]) == {}


def test_all_train_on_the_same_tokens_with_one_optimizer():
    for config in SMALL.values():
        base = SMALL["baseline"]
        assert (config.optimizer, config.data) == (base.optimizer, base.data)
        assert config.steps * config.tokens_per_step == 600 * 64 * 256
        assert config.model.num_layers * config.model.block_repeats == 8


def test_a_variant_changes_no_other():
    assert compression.variants()["baseline"] == compression.get_config()
    assert compression_small.variants()["baseline"] == compression_small.get_config()
