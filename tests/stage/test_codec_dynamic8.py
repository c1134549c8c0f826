"""dynamic8 against another implementation of the same map, without tables."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from swarm_jax.stage import codec_dynamic8

encode, decode = jax.jit(codec_dynamic8.encode), jax.jit(codec_dynamic8.decode)
TINY = np.finfo(np.float32).tiny


def number_of(bits: int) -> float:
    """A code as the paper's figure 2 has it: sign, zeros, an indicator bit, a fraction.

    The zeros before the indicator are the exponent; of what bits are left, the fraction
    is the middle of one of so many equal parts of 0.1 to 1.
    """
    magnitude, sign = bits & 127, -1.0 if bits & 128 else 1.0
    if magnitude == 0:
        return 1.0 if bits & 128 else 0.0  # there is no second zero: it is 1
    fraction_bits = magnitude.bit_length() - 1
    fraction = magnitude - (1 << fraction_bits)
    middle = 0.1 + 0.9 * (fraction + 0.5) / (1 << fraction_bits)
    return sign * middle * 10.0 ** (fraction_bits - 6)


NUMBERS = np.sort([number_of(bits) for bits in range(256)])


def test_the_map_is_the_papers():
    assert codec_dynamic8.MAP.dtype == np.float32
    np.testing.assert_allclose(codec_dynamic8.MAP, NUMBERS, rtol=1e-7)
    assert len(set(codec_dynamic8.MAP)) == 256


def distances(quotient):
    """To the chosen number, and to the nearest one by trying them all."""
    (chosen,) = (np.asarray(jax.jit(codec_dynamic8._nearest)(quotient)),)
    numbers = codec_dynamic8.MAP.astype(np.float64)
    to_each = np.abs(quotient.astype(np.float64)[:, None] - numbers)
    return to_each[np.arange(len(quotient)), chosen], to_each.min(axis=1)


def test_codes_are_exactly_the_nearest_around_every_threshold():
    """Where two codes meet, and a few float32s on both sides of it."""
    numbers = codec_dynamic8.MAP.astype(np.float64)
    near = [((numbers[:-1] + numbers[1:]) / 2).astype(np.float32)]
    for direction in (-2, 2):
        value = near[0]
        for _ in range(4):
            value = np.nextafter(value, np.float32(direction))
            near.append(value)
    chosen, nearest = distances(np.concatenate(near))
    np.testing.assert_array_equal(chosen, nearest)


def test_codes_are_exactly_the_nearest_among_all_magnitudes():
    generator = np.random.default_rng(0)
    signs = generator.choice([-1.0, 1.0], 50_000)
    values = (signs * 10.0 ** generator.uniform(-9, 0, 50_000)).astype(np.float32)
    chosen, nearest = distances(np.append(values, np.float32([0, -0.0, 1, -1])))
    np.testing.assert_array_equal(chosen, nearest)


def reference(x):
    """Blocks of 4096 one by one, in float64."""
    flat = x.ravel().astype(np.float64)
    decoded = []
    for start in range(0, flat.size, 4096):
        block = flat[start : start + 4096]
        scale = np.abs(block).max() or 1.0
        nearest = np.abs(block[:, None] / scale - NUMBERS).argmin(axis=1)
        decoded.append(NUMBERS[nearest] * scale)
    return np.concatenate(decoded).reshape(x.shape)


@pytest.mark.parametrize("shape_BLD", [(1, 2, 3), (2, 16, 256), (3, 100, 30)])
@pytest.mark.parametrize("outlier", [1.0, 100.0])
def test_blocks_and_tail_are_as_another_implementation_has_them(shape_BLD, outlier):
    x_BLD = np.random.default_rng(0).normal(size=shape_BLD).astype(np.float32)
    x_BLD[..., 1] *= outlier
    np.testing.assert_allclose(decode(*encode(x_BLD)), reference(x_BLD), rtol=1e-5)


activations = npst.arrays(
    np.float32,
    (1, 2, 64),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
    | st.floats(-1.0, 1.0, width=32, allow_subnormal=False),
)


@given(x_BLD=activations)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_error_is_at_most_half_the_gap_around_the_value(x_BLD):
    """Except below the lowest number, -0.993, where there is nothing nearer."""
    codes_BLD, scale_N = encode(x_BLD)
    numbers = codec_dynamic8.MAP.astype(np.float64)
    scale = np.float64(scale_N[0])
    above = np.clip(np.searchsorted(numbers, x_BLD / scale), 1, 255)
    gap_BLD = (numbers[above] - numbers[above - 1]) * scale
    error_BLD = np.abs(np.float64(decode(codes_BLD, scale_N)) - x_BLD)
    assert (error_BLD <= gap_BLD / 2 + 1e-6 * np.abs(x_BLD) + TINY).all()


@given(x_BLD=activations)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_what_was_decoded_is_encoded_the_same_if_its_extreme_is_positive(x_BLD):
    """But where decoded numbers are subnormal, which XLA takes for 0."""
    x_BLD[np.abs(x_BLD) < 2.0**-100] = 0.0
    x_BLD[0, 0, 0] = np.abs(x_BLD).max()
    arrays = encode(x_BLD)
    again = encode(decode(*arrays))
    for ours, theirs in zip(again, arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_negative_extreme_loses_less_than_a_hundredth():
    x_BLD = np.array([[[-2.0, 1.0, 0.0]]], np.float32)
    decoded_BLD = decode(*encode(x_BLD))
    assert float(decoded_BLD[0, 0, 0]) == pytest.approx(-2 * 0.99296875, rel=1e-6)
