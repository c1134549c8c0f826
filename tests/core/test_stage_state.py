"""Promises, counting rights and lineages."""

from swarm_jax.core.ids import MicrobatchID, Round
from swarm_jax.core.reports import DRAINING, JOINING, CommitRecord
from swarm_jax.core.stage_state import StageState

OLD, NEW = Round(1, "b", 9), Round(2, "a", 0)


def test_answering_a_round_refuses_older_ones():
    state = StageState(0)
    assert state.promise_to(NEW)
    assert not state.promise_to(OLD)
    assert state.promise_to(NEW)
    assert not state.may_count(MicrobatchID(0, 0), OLD)
    assert state.may_count(MicrobatchID(0, 0), NEW)


def test_terms_with_the_same_number_are_still_ordered():
    assert Round(1, "a", 99) < Round(1, "b", 0) < Round(2, "a", 0)


def test_an_id_on_its_way_into_the_sum_is_not_counted_again():
    state = StageState(0)
    id_ = MicrobatchID(0, 5)
    assert state.may_count(id_, NEW)
    state.settling.add(5)
    assert not state.may_count(id_, NEW)
    state.settling.discard(5)
    state.ledger.add(5, 0.0)
    assert not state.may_count(id_, NEW)


def test_nothing_is_counted_for_another_step_or_while_joining():
    state = StageState(0)
    assert not state.may_count(MicrobatchID(1, 0), NEW)
    state.state = JOINING
    assert not state.may_count(MicrobatchID(0, 0), NEW)


def test_nothing_enters_the_sum_while_device_and_ledger_change():
    state = StageState(0)
    state.changing = True
    assert not state.may_count(MicrobatchID(0, 0), NEW)


def test_a_different_norm_is_a_different_lineage():
    one, other = StageState(0), StageState(0)
    for state, norm in ((one, 1.0), (other, 1.0000001)):
        state.prepare("g")
        state.commit(norm)
    assert one.lineage != other.lineage


def test_lineages_agree_exactly_when_the_gradients_did():
    same, equal, other = (StageState(0) for _ in range(3))
    for state, gradient in ((same, "g"), (equal, "g"), (other, "h")):
        state.prepare(gradient)
        state.commit(1.0)
    assert same.lineage == equal.lineage != other.lineage
    assert same.step == 1 and same.last_commit == CommitRecord(0, 1.0)


def test_a_commit_clears_and_a_skip_needs_no_gradient():
    state = StageState(0)
    state.ledger.add(0, 1.0)
    assert not state.can_commit
    state.commit(None)
    assert state.step == 1 and len(state.ledger) == 0
    assert state.last_commit == CommitRecord(0, None)


def test_a_leaving_peer_counts_what_it_has_in_flight():
    state = StageState(0)
    state.state = DRAINING
    assert state.may_count(MicrobatchID(0, 0), NEW)


def test_the_step_before_is_only_passed_on():
    state = StageState(1)
    state.prepare("g")
    state.commit(1.0)
    before, now = MicrobatchID(0, 0), MicrobatchID(1, 0)
    assert state.can_serve(now, {1}) and state.can_serve(before, {0, 2})
    assert not state.can_serve(before, {1}) and not state.may_count(before, NEW)
    state.can_replay = False
    assert not state.can_serve(before, {0})


def test_a_restart_is_another_lineage_and_forgets_the_sum():
    state, stage_peer = StageState(0), StageState(0)
    state.ledger.add(0, 1.0)
    state.restart(1)
    assert (state.generation, state.step, len(state.ledger)) == (1, 0, 0)
    assert state.lineage != StageState(0).lineage
    stage_peer.adopt(state.position)
    assert stage_peer.position == state.position


def test_with_delayed_updates_a_step_runs_with_the_parameters_before():
    state = StageState(1, staleness=1)
    state.step = 5
    assert [state.age(MicrobatchID(step, 0)) for step in (7, 6, 5, 4)] == [-1, 0, 1, 2]
    served = [state.can_serve(MicrobatchID(s, 0), {1}) for s in (7, 6, 5, 4)]
    assert served == [False, True, True, False]
    old = MicrobatchID(4, 0)
    assert not state.can_serve(old, {0})
    state.can_replay = True
    assert state.can_serve(old, {0}) and not state.can_serve(old, {1})


def test_validation_is_at_the_newest_parameters_however_many_are_kept():
    state = StageState(1, staleness=1)
    state.step, state.can_replay = 5, True
    served = [state.can_serve(MicrobatchID(s, 0), (), False) for s in (6, 5, 4, 3)]
    assert served == [False, True, False, False]
    assert state.age(MicrobatchID(5, 0), training=False) == 0


def test_what_is_counted_early_is_the_ledger_of_the_next_step():
    state = StageState(0, staleness=1)
    now, early = MicrobatchID(0, 3), MicrobatchID(1, 3)
    state.early.add(3, 1.0)
    assert state.has_counted(early) and not state.has_counted(now)
    assert state.may_count(now, NEW) and not state.may_count(early, NEW)
    state.ledger.add(0, 0.0)
    state.prepare("g")
    state.commit(1.0)
    assert state.ledger.losses == {3: 1.0} and not state.early.counted
    assert not state.may_count(early, NEW)
    state.early.add(4, 0.0)
    state.clear()
    assert not state.ledger.counted and not state.early.counted


def test_while_a_sum_is_reduced_only_early_gradients_are_counted():
    state = StageState(0, staleness=1)
    now, early = MicrobatchID(0, 1), MicrobatchID(1, 1)
    state.held = True
    assert state.is_busy(now) and not state.is_busy(early)
    assert state.may_count(early, NEW) and not state.may_count(now, NEW)
    state.held, state.changing = False, True
    assert state.is_busy(now) and state.is_busy(early)
    assert not state.may_count(early, NEW)
    assert state.may_count_soon(early, NEW) and not state.may_count_soon(now, NEW)


def test_without_delayed_updates_nothing_is_counted_early():
    state = StageState(0)
    early = MicrobatchID(1, 0)
    assert not state.can_serve(early, {0}) and not state.may_count(early, NEW)
    state.changing = True
    assert not state.may_count_soon(early, NEW)
