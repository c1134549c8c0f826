"""int8: error bounds, idempotence, independence of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from swarm_jax.stage import codec_int8

WIDTHS = (1, 7, 128, 130, 257, 300)
TINY = np.finfo(np.float32).tiny

encode, decode = jax.jit(codec_int8.encode), jax.jit(codec_int8.decode)


def activations(width):
    """Of any size and spread, with some channels far out."""
    values = st.floats(-1.0, 1.0, width=32, allow_subnormal=False)
    scales = st.sampled_from([1e-30, 1e-3, 1.0, 50.0, 1e30])
    return st.builds(
        lambda x_BLD, channels, scale: x_BLD * np.float32(channels * scale),
        npst.arrays(np.float32, (1, 2, width), elements=values),
        npst.arrays(np.float32, (1, 1, width), elements=st.sampled_from([1.0, 50.0])),
        scales,
    )


def scale_of_each_value(scale_BLN, width):
    count = scale_BLN.shape[-1]
    size = -(-width // count)
    return np.repeat(np.float32(scale_BLN), size, axis=-1)[..., :width]


@pytest.mark.parametrize("width", WIDTHS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_error_is_at_most_half_the_scale(width, data):
    x_BLD = data.draw(activations(width))
    codes_BLD, scale_BLN = encode(x_BLD)
    assert codes_BLD.min() >= -127
    scale_BLD = scale_of_each_value(scale_BLN, width).astype(np.float64)
    error_BLD = np.abs(np.float64(decode(codes_BLD, scale_BLN)) - x_BLD)
    # A device may take what is below TINY for zero; and the quotient is rounded.
    assert (error_BLD <= scale_BLD / 2 * (1 + 1e-5) + TINY).all()
    largest = max(np.abs(x_BLD).max(), 127 * TINY)
    assert scale_BLD.max() <= largest / 127 * (1 + 2**-8 + 1e-6)


@pytest.mark.parametrize("width", WIDTHS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_what_was_decoded_is_encoded_the_same(width, data):
    arrays = encode(data.draw(activations(width)))
    again = encode(decode(*arrays))
    for ours, theirs in zip(again, arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_outlier_costs_its_block_only():
    x_BLD = np.random.default_rng(0).normal(size=(1, 1, 512)).astype(np.float32)
    plain_BLD = decode(*encode(x_BLD))
    x_BLD[0, 0, 200] = 1000.0
    error_BLD = np.abs(decode(*encode(x_BLD)) - x_BLD)
    others = np.r_[0:128, 256:512]
    np.testing.assert_array_equal(
        error_BLD[..., others], np.abs(plain_BLD - x_BLD)[..., others]
    )
    assert error_BLD[..., 128:256].max() > 0.5


@pytest.mark.parametrize("width", [6, 128, 300])
def test_no_token_depends_on_another(width):
    x_BLD = np.random.default_rng(0).normal(size=(2, 3, width)).astype(np.float32)
    apart_BLD = jnp.stack([jnp.stack([decode(*encode(x)) for x in y]) for y in x_BLD])
    np.testing.assert_array_equal(decode(*encode(x_BLD)), apart_BLD)


def test_ties_round_to_even():
    x_BLD = np.array([[[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]], np.float32)
    codes_BLD, scale_BLN = encode(x_BLD)
    assert float(scale_BLN[0, 0, 0]) == 1.0
    assert codes_BLD.tolist() == [[[127, 0, 2, 2, 0, -2]]]
