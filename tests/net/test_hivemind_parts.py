"""Codecs of torch beside those of numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from swarm_jax.net.hivemind_parts import part_codec
from swarm_jax.net.parts import PART_CODECS

parts = arrays_of.arrays(
    np.float32, st.integers(1, 600), elements=st.floats(width=32, allow_nan=False)
)


@pytest.mark.parametrize("wire", PART_CODECS)
@given(part=parts)
def test_both_give_the_same_bytes(wire, part):
    ours, theirs = part_codec(wire), PART_CODECS[wire]
    sent, expected = ours.encode(part), theirs.encode(part)
    assert [a.tobytes() for a in sent] == [a.tobytes() for a in expected]
    for array in sent:
        array.flags.writeable = False
    back = ours.decode(sent)
    assert back.dtype == np.float32
    assert back.tobytes() == theirs.decode(sent).tobytes()


def test_what_is_no_number_stays_so():
    codec = part_codec("float16")
    assert np.isnan(codec.decode(codec.encode(np.array([np.nan], np.float32)))).all()
