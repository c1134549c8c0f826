"""Sequences of whole documents: nothing lost, nothing learnt twice, counts exact."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_jax.data import packing
from swarm_jax.data.cache import Split
from swarm_jax.data.packing import IGNORED, Packed, Windows, open_sequences

END = 999
SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def make_split(tmp_path_factory):
    """``make_split(sizes)``: documents of so many tokens, all of them different."""
    folder = tmp_path_factory.mktemp("packing")
    numbers = itertools.count()

    def make(sizes) -> Split:
        ends = np.cumsum(np.array(sizes) + 1).astype(np.uint64)
        tokens = np.arange(1000, 1000 + int(ends[-1]), dtype=np.uint32)
        tokens[ends.astype(int) - 1] = END
        return Split(folder / f"split{next(numbers)}", tokens, ends, END)

    return make


def pairs_of(inputs, targets) -> list[tuple[int, int]]:
    taken = targets >= 0
    pairs = zip(inputs[taken].tolist(), targets[taken].tolist(), strict=True)
    return sorted(pairs)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(sizes=SIZES, length=st.integers(1, 16), at_once=st.sampled_from([1, 7, 1 << 16]))
def test_every_token_is_learnt_once_from_the_one_before_it(
    make_split, sizes, length, at_once
):
    split = make_split(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_DOCUMENTS_AT_ONCE", at_once)
        packed = Packed(split, length)
    inputs, targets = packed.rows(range(len(packed)))
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.shape == targets.shape == (len(packed), length)
    expected_inputs, expected_targets = split.tokens[:-1], split.tokens[1:].astype(int)
    expected_targets[expected_inputs == END] = IGNORED
    assert pairs_of(inputs, targets) == pairs_of(expected_inputs, expected_targets)
    for row in range(len(packed)):
        counted = packed.loss_tokens([row])
        assert counted == (targets[row] >= 0).sum() >= 1
    assert packed.loss_tokens(range(len(packed))) == sum(sizes)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(sizes=st.lists(st.integers(1, 15), min_size=1, max_size=60))
def test_documents_that_fit_are_whole_and_closed(make_split, sizes):
    split = make_split(sizes)
    inputs, targets = Packed(split, 16).rows(range(len(Packed(split, 16))))
    shown = []
    for row_inputs, row_targets in zip(inputs, targets, strict=True):
        documents = np.split(row_inputs, np.flatnonzero(row_inputs == END) + 1)
        shown += [d.tolist() for d in documents if len(d) > 1]
        assert (row_targets[row_inputs == END] == IGNORED).all()
    starts = np.concatenate([[0], split.ends[:-1].astype(int)])
    expected = [
        split.tokens[a : int(b)].tolist()
        for a, b in zip(starts, split.ends, strict=True)
    ]
    assert sorted(shown) == sorted(expected)


def test_no_two_sequences_would_fit_into_one(make_split):
    sizes = np.random.default_rng(0).integers(1, 300, 500)
    split = make_split(sizes)
    packed = Packed(split, 512)
    inputs, targets = packed.rows(range(len(packed)))
    filled = np.sort([np.flatnonzero(row >= 0)[-1] + 2 for row in targets])
    assert filled[0] + filled[1] > 512
    assert (sizes + 1).sum() / inputs.size > 0.97


def test_another_process_finds_the_same_packing_in_the_cache(make_split, monkeypatch):
    split = make_split([5, 30, 7, 2, 19])
    first = Packed(split, 16).rows([0, 1, 2])
    monkeypatch.setattr(packing, "_pack", None)
    for ours, theirs in zip(Packed(split, 16).rows([0, 1, 2]), first, strict=True):
        assert np.array_equal(ours, theirs)


def test_text_behind_the_last_window_is_left_and_every_target_counts(make_split):
    split = make_split([40])
    windows = open_sequences(split, "stream", 16)
    assert isinstance(windows, Windows) and len(windows) == 2
    inputs, targets = windows.rows([1, 0])
    assert np.array_equal(inputs[0], split.tokens[16:32])
    assert np.array_equal(targets[0], split.tokens[17:33])
    assert windows.loss_tokens([1, 0]) == 32
    assert len(open_sequences(make_split([14]), "stream", 16)) == 0
