"""Ledger arithmetic: what is missing, what is exact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_jax.core.ledger import Audit, Ledger, audit, ledger_digest, missing_stages

SUMS = st.lists(st.frozensets(st.integers(0, 7)), max_size=4)


def test_counting_twice_on_one_peer_is_our_own_bug():
    ledger = Ledger()
    ledger.add(3, 0.5)
    with pytest.raises(AssertionError, match="microbatch 3 counted twice"):
        ledger.add(3, 0.5)


def test_digest_names_the_contents_and_nothing_else():
    assert ledger_digest([1, 23]) == ledger_digest({23, 1})
    assert ledger_digest([1, 23]) != ledger_digest([12, 3])


@given(st.dictionaries(st.integers(0, 3), SUMS, min_size=1))
def test_an_index_is_missing_exactly_where_no_sum_holds_it(by_stage):
    missing = missing_stages(by_stage, 8)
    for index in range(8):
        lacking = {
            s for s, sums in by_stage.items() if not any(index in x for x in sums)
        }
        assert missing.get(index, frozenset()) == lacking


@given(st.dictionaries(st.integers(0, 3), SUMS, min_size=1))
def test_audit_is_exact_if_and_only_if_every_stage_partitions_the_step(by_stage):
    result = audit(by_stage, 8)
    partitions = all(
        sorted(i for x in sums for i in x) == list(range(8))
        for sums in by_stage.values()
    )
    assert result.exact == partitions
    assert (result.lost == 0) == (not missing_stages(by_stage, 8))


def test_audit_counts_losses_and_repetitions():
    by_stage = {0: [{0, 1}, {1}], 1: [{0, 1, 2}]}
    by_stage = {s: [frozenset(x) for x in sums] for s, sums in by_stage.items()}
    assert audit(by_stage, 3) == Audit(
        expected=3, counted_once=1, lost=1, counted_twice=1
    )
