"""What holds for every codec."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_jax.config import WIRES
from swarm_jax.stage import codec as codec_module
from swarm_jax.stage.codec import make_boundary_codec, make_codec, straight_through

SHAPE_BLD = (2, 3, 4)
WIRES_32 = tuple(wire for wire in WIRES if wire != "float64")
EIGHT_BIT = ("int8", "dynamic8")
BAD = (np.nan, np.inf, -np.inf)

any_wire = pytest.mark.parametrize("wire", WIRES_32)


@pytest.fixture
def x_BLD():
    generator = np.random.default_rng(0)
    return generator.normal(size=SHAPE_BLD).astype(np.float32)


def encode(codec, x_BLD):
    return tuple(np.asarray(array) for array in jax.jit(codec.encode)(x_BLD))


def decode(codec, arrays):
    return np.asarray(jax.jit(codec.decode)(arrays))


def all_finite(arrays):
    return all(bool(jnp.all(jnp.isfinite(array))) for array in arrays)


def test_a_config_takes_the_wires_there_are():
    assert set(WIRES) == set(codec_module.WIRES)


def test_float32_returns_the_same_bytes(x_BLD):
    codec = make_codec("float32", x_BLD.shape, "float32")
    assert decode(codec, encode(codec, x_BLD)).tobytes() == x_BLD.tobytes()


def test_bfloat16_rounds_to_8_bits(x_BLD):
    codec = make_codec("bfloat16", x_BLD.shape, "float32")
    decoded = decode(codec, encode(codec, x_BLD))
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, x_BLD, rtol=2**-8)
    assert not np.array_equal(decoded, x_BLD)


@any_wire
def test_decodes_into_the_dtype_of_the_stage(wire, x_BLD):
    codec = make_codec(wire, x_BLD.shape, "bfloat16")
    assert codec.decode(codec.encode(jnp.bfloat16(x_BLD))).dtype == jnp.bfloat16


@any_wire
@pytest.mark.parametrize("width", [1, 4, 100, 128, 130, 257, 1000, 4096, 5000])
def test_specs_describe_what_encode_gives(wire, width):
    codec = make_codec(wire, (2, 3, width), "float32")
    x_BLD = jax.ShapeDtypeStruct((2, 3, width), np.float32)
    arrays = jax.eval_shape(codec.encode, x_BLD)
    assert codec.specs == tuple((a.dtype.name, a.shape) for a in arrays)
    assert jax.eval_shape(codec.decode, arrays) == x_BLD


@pytest.mark.parametrize("wire", EIGHT_BIT)
@pytest.mark.parametrize("width", [100, 128, 130, 255, 257, 383, 768, 1000, 12288])
def test_8_bit_wires_take_little_more_than_a_byte_a_value(wire, width):
    shape_BLD = (2, 300, width)
    specs = make_codec(wire, shape_BLD, "float32").specs
    sent = sum(np.prod(shape) * jnp.dtype(dtype).itemsize for dtype, shape in specs)
    assert sent <= 1.02 * np.prod(shape_BLD)


@any_wire
def test_one_program_loses_what_two_lose(wire, x_BLD):
    """XLA leaves out a cast there and back, if it may."""
    codec = make_codec(wire, x_BLD.shape, "float32")
    in_one = jax.jit(lambda x_BLD: codec.decode(codec.encode(x_BLD)))(x_BLD)
    np.testing.assert_array_equal(in_one, decode(codec, encode(codec, x_BLD)))


@any_wire
@given(
    bad=st.lists(
        st.tuples(st.integers(0, 23), st.sampled_from(BAD)), min_size=1, max_size=5
    ),
    exponent=st.integers(-30, 30),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_what_is_not_finite_shows_in_the_arrays_and_stays_so(wire, bad, exponent):
    x_BLD = np.float32(2.0**exponent) * np.arange(24, dtype=np.float32)
    for index, value in bad:
        x_BLD[index] = value
    x_BLD = x_BLD.reshape(SHAPE_BLD)
    codec = make_codec(wire, SHAPE_BLD, "float32")
    arrays = codec.encode(jnp.asarray(x_BLD))
    assert not all_finite(arrays)
    decoded = np.asarray(codec.decode(arrays))
    assert not np.isfinite(decoded[~np.isfinite(x_BLD)]).any()


@any_wire
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@given(largest=st.floats(2.0**100, float(np.finfo(np.float32).max), width=32))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_what_was_sent_as_finite_is_finite(wire, dtype, largest):
    x_BLD = np.full(SHAPE_BLD, largest, np.float32)
    x_BLD[0, 0, 0] = -largest
    codec = make_codec(wire, SHAPE_BLD, dtype)
    arrays = codec.encode(jnp.asarray(x_BLD))
    decoded = codec.decode(arrays)
    if wire != "float32":  # a bfloat16 stage has no room for the largest of these
        assert all_finite(arrays) == all_finite([decoded])
    if largest < 2.0**126:
        assert all_finite(arrays)
        np.testing.assert_allclose(np.float32(decoded), x_BLD, rtol=0.01)


@pytest.mark.parametrize("wire", EIGHT_BIT)
def test_zeros_and_tiny_values(wire):
    x_BLD = np.zeros((1, 2, 4), np.float32)
    codec = make_codec(wire, x_BLD.shape, "float32")
    assert not decode(codec, encode(codec, x_BLD)).any()
    smallest = np.finfo(np.float32).tiny
    for scale in (1e-45, 1e-40, smallest, 1e-37):
        x_BLD[0, 0] = np.float32(scale) * np.array([1, -1, 0.5, 0], np.float32)
        arrays = encode(codec, x_BLD)
        assert all_finite(arrays)
        assert np.abs(decode(codec, arrays) - x_BLD).max() <= smallest


@pytest.mark.parametrize("wire", EIGHT_BIT)
@given(data=st.data())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_bytes_decode_and_a_scale_that_is_not_finite_shows(wire, data):
    codec = make_codec(wire, SHAPE_BLD, "float32")
    codes, scales = (
        np.frombuffer(
            data.draw(st.binary(min_size=size, max_size=size)), jnp.dtype(dtype)
        ).reshape(shape)
        for dtype, shape in codec.specs
        for size in [int(np.prod(shape)) * jnp.dtype(dtype).itemsize]
    )
    decoded = np.asarray(codec.decode((codes, scales)))
    assert decoded.shape == SHAPE_BLD
    if wire == "dynamic8":
        assert np.isfinite(decoded).all() == np.isfinite(scales).all()
    else:
        assert not np.isfinite(decoded[~np.isfinite(np.float32(scales))[..., 0]]).any()


@any_wire
def test_a_gradient_goes_straight_through_in_the_codec_of_gradients(wire, x_BLD):
    codec = make_boundary_codec((wire, "bfloat16"), x_BLD.shape, "float32")
    grad_BLD = np.random.default_rng(1).normal(size=x_BLD.shape).astype(np.float32)
    y_BLD, pull = jax.vjp(straight_through(codec), x_BLD)
    there = codec.activations
    np.testing.assert_array_equal(y_BLD, decode(there, encode(there, x_BLD)))
    rounded = np.float32(jnp.bfloat16(grad_BLD))
    np.testing.assert_array_equal(pull(jnp.asarray(grad_BLD))[0], rounded)


def test_what_cannot_work_is_said():
    with pytest.raises(ValueError, match="no codec is named 'float12'"):
        make_codec("float12", (1, 1, 1), "float32")
    with pytest.raises(ValueError, match="JAX_ENABLE_X64=1"):
        make_codec("float64", (1, 1, 1), "float32")
