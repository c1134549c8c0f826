import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm_jax.stage.codec import make_codec


@pytest.fixture
def x_BLD():
    generator = np.random.default_rng(0)
    return generator.normal(size=(2, 3, 4)).astype(np.float32)


def test_float32_returns_the_same_bytes(x_BLD):
    codec = make_codec("float32", x_BLD.shape, "float32")
    arrays = jax.jit(codec.encode)(x_BLD)
    assert np.asarray(jax.jit(codec.decode)(arrays)).tobytes() == x_BLD.tobytes()


def test_bfloat16_rounds_to_8_bits(x_BLD):
    codec = make_codec("bfloat16", x_BLD.shape, "float32")
    arrays = tuple(np.asarray(array) for array in jax.jit(codec.encode)(x_BLD))
    decoded = np.asarray(jax.jit(codec.decode)(arrays))
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, x_BLD, rtol=2**-8)
    assert not np.array_equal(decoded, x_BLD)


def test_decodes_into_the_dtype_of_the_stage(x_BLD):
    codec = make_codec("float32", x_BLD.shape, "bfloat16")
    assert codec.decode(codec.encode(jnp.bfloat16(x_BLD))).dtype == jnp.bfloat16


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_specs_describe_what_encode_gives(wire, x_BLD):
    codec = make_codec(wire, x_BLD.shape, "float32")
    arrays = codec.encode(jnp.asarray(x_BLD))
    assert codec.specs == tuple((a.dtype.name, a.shape) for a in arrays)


def test_unknown_and_impossible_wires_are_refused():
    with pytest.raises(ValueError, match="no codec is named 'float12'"):
        make_codec("float12", (1, 1, 1), "float32")
    with pytest.raises(ValueError, match="JAX_ENABLE_X64=1"):
        make_codec("float64", (1, 1, 1), "float32")
