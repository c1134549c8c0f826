"""Codecs of the parts of an all-reduce."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from swarm_jax.net.parts import BLOCK, PART_CODECS
from swarm_jax.net.protocols import spec_of

parts = arrays_of.arrays(
    np.float32, st.integers(1, 2 * BLOCK + 3), elements=st.floats(-1e4, 1e4, width=32)
)


@pytest.mark.parametrize("wire", PART_CODECS)
@given(part=parts)
def test_what_is_sent_has_the_specs_that_the_receiver_checks(wire, part):
    codec = PART_CODECS[wire]
    sent = codec.encode(part)
    assert codec.is_part(sent, part.size) and codec.fits([spec_of(a) for a in sent])
    assert not codec.is_part(sent, part.size + 1)
    assert not codec.is_part(sent[:-1], part.size)
    back = codec.decode(sent)
    assert back.dtype == np.float32 and back.shape == part.shape


@given(part=parts)
def test_float32_is_exact(part):
    codec = PART_CODECS["float32"]
    assert codec.decode(codec.encode(part)).tobytes() == part.tobytes()


@given(part=parts)
def test_float16_rounds_to_eleven_bits(part):
    codec = PART_CODECS["float16"]
    back = codec.decode(codec.encode(part))
    assert (np.abs(back - part) <= np.abs(part) * 2.0**-11 + 6e-8).all()


@given(part=parts)
def test_int8_errs_by_half_a_step_of_its_block(part):
    codec = PART_CODECS["int8"]
    back = codec.decode(codec.encode(part))
    for begin in range(0, part.size, BLOCK):
        block = part[begin : begin + BLOCK]
        largest = float(np.abs(block).max())
        error = np.abs(back[begin : begin + BLOCK] - block).max()
        assert error <= largest / 254 * (1 + 1e-4) + 1e-43


@pytest.mark.parametrize("wire", PART_CODECS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_so(wire, bad):
    part = np.ones(2 * BLOCK, np.float32)
    part[3] = bad
    codec = PART_CODECS[wire]
    back = codec.decode(codec.encode(part))
    assert not np.isfinite(back[3])
    np.testing.assert_allclose(back[BLOCK:], 1.0)
