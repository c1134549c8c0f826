"""The step protocol's decisions, rule by rule."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from swarm_jax.core.closing import (
    Close,
    CommitRest,
    Done,
    Drop,
    Feed,
    Restart,
    Resync,
    Wait,
    most_suspect,
    next_action,
)
from swarm_jax.core.ledger import audit
from swarm_jax.core.newest import Newest
from swarm_jax.core.reports import DRAINING, JOINING, ONLINE, CommitRecord, Report

STAGES, STEPS, MICROBATCHES = 2, 10, 4
WHOLE = frozenset(range(MICROBATCHES))


def report(peer: str, stage: int, counted=(), step: int = 3, **fields) -> Report:
    fields = {"state": ONLINE, "lineage": f"step {step}"} | fields
    return Report(
        peer=peer, stage=stage, step=step, counted=frozenset(counted), **fields
    )


def seen(generation: int, step: int, record: CommitRecord | None = None) -> Newest:
    newest = Newest()
    newest.saw(generation, step)
    if record:
        newest.knows(generation, record)
    return newest


def decide(
    *reports: Report,
    left_out=frozenset(),
    newest_seen: Newest | None = None,
    tied_stages=frozenset(),
    delayed_updates=False,
):
    return next_action(
        reports,
        num_stages=STAGES,
        steps=STEPS,
        microbatches=MICROBATCHES,
        newest_seen=newest_seen or Newest(),
        left_out=left_out,
        tied_stages=tied_stages,
        delayed_updates=delayed_updates,
    )


def test_a_stage_without_a_peer_is_named():
    assert decide(report("a", 0)) == Wait((1,), "no live peer")
    joining = report("b", 1, state=JOINING)
    assert decide(report("a", 0), joining).stages == (1,)


def test_only_what_a_stage_lacks_is_fed_to_it():
    action = decide(report("a", 0, [0, 1]), report("b", 0, [2]), report("c", 1, WHOLE))
    assert action == Feed(3, {3: frozenset({0})})


def test_a_draining_peer_still_counts():
    action = decide(report("a", 0, WHOLE, state=DRAINING), report("b", 1, WHOLE))
    assert isinstance(action, Close)


def test_of_an_overlap_the_smaller_sum_is_dropped():
    action = decide(
        report("a", 0, [0, 1]), report("b", 0, [1, 2, 3]), report("c", 1, WHOLE)
    )
    assert action == Drop(3, "a")


def test_a_step_is_closed_with_all_peers_idle_ones_too():
    action = decide(report("a", 0, WHOLE), report("b", 0), report("c", 1, WHOLE))
    assert isinstance(action, Close)
    assert [r.peer for r in action.groups[0]] == ["a", "b"]


def test_a_peer_left_out_is_neither_waited_for_nor_counted():
    action = decide(
        report("a", 0, [0, 1]),
        report("b", 0, [2, 3]),
        report("c", 1, WHOLE),
        left_out=frozenset({"b"}),
    )
    missing = {2: frozenset({0}), 3: frozenset({0})}
    assert action == Feed(3, missing, avoid=frozenset({"b"}))


def test_a_peer_left_out_is_used_again_when_it_is_the_only_one():
    action = decide(
        report("a", 0, [0, 1]), report("c", 1, WHOLE), left_out=frozenset({"a"})
    )
    assert isinstance(action, Feed) and not action.avoid


def test_a_stage_is_never_left_empty_by_leaving_peers_out():
    action = decide(
        report("a", 0, WHOLE), report("c", 1, WHOLE), left_out=frozenset({"a"})
    )
    assert isinstance(action, Close)


def test_stale_peers_resync_when_their_stage_has_a_current_one():
    old = report("b", 0, step=1)
    assert decide(report("a", 0), old, report("c", 1)) == Resync(("b",))


def test_of_equally_common_lineages_that_which_counted_less_resyncs():
    """Who closed a step alone keeps its sum, whatever the names of lineages."""
    for theirs in ("a", "z"):
        back = report("back", 0, lineage=theirs)
        stayed = report("stayed", 0, {0, 1}, lineage="m")
        assert decide(back, stayed, report("other", 1)) == Resync(("back",))


def test_the_rarer_lineage_resyncs():
    odd = report("b", 0, lineage="other")
    action = decide(report("a", 0), odd, report("c", 0), report("d", 1))
    assert action == Resync(("b",))


def test_when_some_stages_have_committed_the_others_must_follow():
    record = CommitRecord(2, 1.5)
    ahead = report("a", 0, last_commit=record)
    ready = report("b", 1, WHOLE, step=2, prepared_step=2)
    assert decide(ahead, ready) == CommitRest(record, ("b",))


def test_nothing_is_committed_without_the_record_of_that_very_step():
    ready = report("b", 1, WHOLE, step=2, prepared_step=2)
    for record in (None, CommitRecord(1, 1.5)):
        action = decide(report("a", 0, last_commit=record), ready)
        assert isinstance(action, Wait) and action.stages == (1,)


def test_nothing_is_committed_across_two_steps():
    ahead = report("a", 0, step=4, last_commit=CommitRecord(3, 1.5))
    behind = report("b", 1, WHOLE, step=2, prepared_step=2)
    action = decide(ahead, behind)
    assert isinstance(action, Wait) and "step 4" in action.reason


def test_a_skipped_step_needs_no_prepared_gradient_to_follow():
    record = CommitRecord(2, None)
    action = decide(report("a", 0, last_commit=record), report("b", 1, step=2))
    assert action == CommitRest(record, ("b",))


def test_a_skip_is_not_asked_of_a_peer_at_an_older_step():
    ahead = report("a", 0, last_commit=CommitRecord(2, None))
    action = decide(ahead, report("b", 1, step=2), report("c", 1, step=0))
    assert action == CommitRest(CommitRecord(2, None), ("b",))


def test_a_stage_that_lost_the_prepared_gradient_gets_the_step_again():
    record = CommitRecord(2, 1.5)
    ahead = report("a", 0, last_commit=record, can_replay=True)
    behind = report("b", 1, [0], step=2)
    missing = {index: frozenset({1}) for index in (1, 2, 3)}
    assert decide(ahead, behind) == Feed(2, missing)
    whole = replace(behind, counted=WHOLE)
    assert decide(ahead, whole) == Close(2, {1: (whole,)}, {1: ()}, record)


def test_a_stage_that_lost_the_prepared_gradient_for_good_is_named():
    ahead = report("a", 0, last_commit=CommitRecord(2, 1.5))
    action = decide(ahead, report("b", 1, [0], step=2))
    assert isinstance(action, Wait) and action.stages == (1,) and action.is_lost


def test_one_peer_of_a_stage_that_can_replay_is_enough():
    record = CommitRecord(2, 1.5)
    forgetful = report("a", 0, last_commit=record)
    behind = report("b", 1, WHOLE, step=2)
    uncommitted = report("c", 0, step=2)
    assert isinstance(decide(forgetful, uncommitted, behind), Close)


def tied_step_again(*of_the_other_end: Report):
    """Stage 1 gets step 2 again; stage 0, which it is tied to, has committed it."""
    behind = report("z", 1, WHOLE, step=2)
    return decide(*of_the_other_end, behind, tied_stages=frozenset({0, 1}))


def test_who_has_applied_a_tied_gradient_gives_it():
    record = CommitRecord(2, 1.5)
    there = {"last_commit": record, "can_replay": True}
    rare = report("a", 0, **there, lineage="rare")
    others = [report(name, 0, **there) for name in "bc"]
    forgetful = report("d", 0, last_commit=record)
    uncommitted = report("e", 0, step=2)
    action = tied_step_again(rare, *others, forgetful, uncommitted)
    assert isinstance(action, Close) and action.record == record
    assert action.donors == ("b", "c", "a")


def test_who_missed_the_commit_is_told_it_first_to_give_the_tied_gradient():
    forgetful = report("a", 0, last_commit=CommitRecord(2, 1.5))
    late = report("b", 0, step=2, prepared_step=2)
    action = tied_step_again(forgetful, late)
    assert action == CommitRest(CommitRecord(2, 1.5), ("b",))


def test_a_tied_gradient_that_nobody_keeps_is_named():
    """The one at step 2 could pass microbatches on, but has not applied anything."""
    forgetful = report("a", 0, last_commit=CommitRecord(2, 1.5))
    action = tied_step_again(forgetful, report("b", 0, step=2))
    assert isinstance(action, Wait) and action.stages == (1,) and action.is_lost
    assert "no peer with the tied gradient of step 2" in action.reason


def test_two_ends_that_both_get_a_step_again_need_no_donors():
    record = CommitRecord(2, 1.5)
    behind = [report("a", 0, WHOLE, step=2), report("z", 2, WHOLE, step=2)]
    middle = report("m", 1, last_commit=record, can_replay=True)
    action = next_action(
        [*behind, middle],
        num_stages=3,
        steps=STEPS,
        microbatches=MICROBATCHES,
        newest_seen=Newest(),
        tied_stages=frozenset({0, 2}),
    )
    assert isinstance(action, Close) and set(action.groups) == {0, 2}
    assert action.donors == ()


def test_a_peer_that_only_missed_the_commit_is_told_it_again():
    record = CommitRecord(2, 1.5)
    there = [report(p, s, last_commit=record) for p, s in (("a", 0), ("c", 1))]
    late = report("b", 0, WHOLE, step=2, prepared_step=2)
    assert decide(*there, late) == CommitRest(record, ("b",))
    assert decide(*there, replace(late, prepared_step=None)) == Resync(("b",))


def test_joiners_keep_the_gradient_but_are_not_counted():
    joiner = report("b", 0, [1], step=0, state=JOINING)
    a, c = report("a", 0, WHOLE), report("c", 1, WHOLE)
    action = decide(a, joiner, c)
    assert action == Close(3, {0: (a,), 1: (c,)}, {0: (joiner,), 1: ()})
    assert decide(a, joiner, c, left_out=frozenset("b")).joiners == {0: (), 1: ()}


def test_of_equal_overlapping_sums_the_leaving_peer_drops_its_own():
    leaving = report("z", 0, [1], state=DRAINING)
    assert decide(report("a", 0, [1]), leaving, report("c", 1, WHOLE)) == Drop(3, "z")


def test_nothing_is_fed_to_a_stage_that_everybody_leaves():
    leaving = report("a", 0, [0], state=DRAINING)
    action = decide(leaving, report("c", 1, WHOLE))
    assert isinstance(action, Wait) and action.stages == (0,) and not action.is_lost


def test_a_restart_reaches_every_stage():
    new, old = report("a", 0, step=0, generation=1), report("c", 1, step=5)
    assert decide(new, old) == Restart(1, 0, ("c",))


def test_a_peer_from_before_a_restart_takes_its_stages_new_state():
    reports = [report("a", 0, generation=1), report("c", 1, generation=1)]
    action = decide(*reports, report("b", 0, step=9))
    assert action == Resync(("b",))
    fed = decide(*reports)
    assert isinstance(fed, Feed) and fed.generation == 1


def test_a_run_does_not_go_on_from_less_than_was_seen():
    reports = [report("a", 0, step=4), report("b", 1, step=3)]
    for old in (seen(0, 5), seen(1, 1)):
        action = decide(*reports, newest_seen=old)
        assert isinstance(action, Wait) and action.is_lost and action.stages == (0, 1)
    assert "no peer can go back to step 1, as the run did" in action.reason


def test_a_stage_that_has_what_was_seen_is_enough_to_go_on():
    record = CommitRecord(3, 1.5)
    reports = [
        report("a", 0, step=4, last_commit=record),
        report("b", 1, step=3, prepared_step=3),
    ]
    assert decide(*reports, newest_seen=seen(0, 4)) == CommitRest(record, ("b",))


def test_a_state_that_is_gone_is_made_again_by_who_holds_its_gradient():
    newest = seen(0, 4, CommitRecord(3, 1.5))
    ready = report("a", 0, WHOLE, prepared_step=3)
    reports = [ready, report("b", 0), report("c", 1, step=2, prepared_step=2)]
    followed = decide(*reports, newest_seen=newest)
    assert followed == CommitRest(newest.last_commit, ("a",))
    of_another_run = seen(1, 4, newest.last_commit)
    assert isinstance(decide(*reports, newest_seen=of_another_run), Wait)
    assert isinstance(decide(*reports[1:], newest_seen=newest), Wait)


def test_a_skipped_step_is_skipped_by_who_is_left():
    newest = seen(0, 4, CommitRecord(3, None))
    action = decide(report("a", 0), report("c", 1), newest_seen=newest)
    assert action == CommitRest(newest.last_commit, ("a", "c"))


def test_the_state_that_a_run_is_started_again_with_is_everybodys():
    action = decide(report("a", 0), report("c", 1), newest_seen=seen(1, 0))
    assert action == Restart(1, 0, ("a", "c"))


def test_done_only_when_every_stage_is():
    last = [report("a", 0, step=STEPS), report("b", 1, step=STEPS)]
    assert decide(*last) == Done()
    behind = replace(last[1], step=STEPS - 1, prepared_step=STEPS - 1)
    ahead = replace(last[0], last_commit=CommitRecord(STEPS - 1, 1.0))
    assert isinstance(decide(ahead, behind), CommitRest)


@given(
    st.lists(
        st.builds(
            report,
            st.sampled_from("abcdef"),
            st.integers(0, 2),
            st.frozensets(st.integers(0, MICROBATCHES - 1)),
            step=st.integers(0, 3),
            state=st.sampled_from([ONLINE, JOINING, DRAINING]),
            lineage=st.sampled_from(["x", "y"]),
            generation=st.integers(0, 1),
            can_replay=st.booleans(),
            prepared_step=st.none() | st.integers(0, 3),
            last_commit=st.none()
            | st.builds(CommitRecord, st.integers(0, 3), st.none() | st.just(1.0)),
        ),
        max_size=6,
        unique_by=lambda r: r.peer,
    ),
    st.builds(
        seen,
        st.integers(0, 1),
        st.integers(0, 4),
        st.none() | st.builds(CommitRecord, st.integers(0, 3), st.just(1.0)),
    ),
    st.sampled_from([frozenset(), frozenset({0, 1})]),
)
def test_whatever_is_reported_only_exact_steps_are_closed(reports, newest, tied):
    action = decide(*reports, newest_seen=newest, tied_stages=tied)
    if isinstance(action, Feed | Drop | Close | Done | Resync):
        assert max((r.generation, r.step) for r in reports) >= newest.position
    match action:
        case Close(step, groups, joiners):
            assert {r.state for group in joiners.values() for r in group} <= {JOINING}
            counted = {s: [r.counted for r in group] for s, group in groups.items()}
            assert audit(counted, MICROBATCHES).exact
            assert {r.step for group in groups.values() for r in group} == {step}
            is_shared = tied <= groups.keys() or not tied & groups.keys()
            assert bool(action.donors) != is_shared
        case CommitRest(record, peers):
            by_name = {r.peer: r for r in reports}
            assert {by_name[p].step for p in peers} == {record.step}
        case Resync(peers):
            serving = [r for r in reports if r.state in (ONLINE, DRAINING)]
            for stage in range(STAGES):
                assert {r.peer for r in serving if r.stage == stage} - set(peers)
    reverse = decide(*reversed(reports), newest_seen=newest, tied_stages=tied)
    assert reverse == action


def test_the_most_named_peer_of_a_stage_with_a_spare_is_suspected():
    groups = {0: ["a", "b"], 1: ["c"]}
    rounds = [{"a": ["b"], "c": []}] * 2
    assert most_suspect(rounds, groups, frozenset()) in ("a", "b")
    assert most_suspect([{"b": []}], groups, frozenset()) == "b"
    assert most_suspect([{"c": []}], groups, frozenset()) is None
    assert most_suspect([{"b": []}], groups, frozenset({"a"})) is None


def test_who_lacks_what_no_peer_of_its_group_gets_is_not_suspected():
    """The tied gradient of a step that others have committed already."""
    groups, donors = {0: ["a", "b", "c"]}, ["d"]
    all_but_c = {"a": donors, "b": donors}
    assert most_suspect([all_but_c | {"c": donors}], groups, frozenset()) is None
    assert most_suspect([all_but_c], groups, frozenset({"c"})) is None
    assert most_suspect([all_but_c | {"c": []}], groups, frozenset()) == "c"
    assert most_suspect([{"a": donors}], groups, frozenset()) == "a"
    once = [all_but_c | {"c": donors}, {"a": donors}, {"a": donors}]
    assert most_suspect(once, groups, frozenset()) == "a"


def whole(peer, stage, early=(), **fields):
    return report(peer, stage, WHOLE, early=frozenset(early), **fields)


def ahead_of(*reports, **options):
    action = decide(*reports, delayed_updates=True, **options)
    assert isinstance(action, Close)
    return action.ahead


def test_with_delayed_updates_a_step_is_closed_and_the_next_one_fed():
    both = frozenset({0, 1})
    ahead = ahead_of(whole("a", 0, [0]), whole("b", 1, [0, 1]))
    assert ahead == Feed(4, {1: frozenset({0}), 2: both, 3: both})
    assert decide(whole("a", 0), whole("b", 1)).ahead is None


def test_nothing_is_fed_ahead_where_nothing_can_be():
    last = {"step": STEPS - 1}
    assert ahead_of(whole("a", 0, **last), whole("b", 1, **last)) is None
    assert ahead_of(whole("a", 0, WHOLE), whole("b", 1, WHOLE)) is None
    assert ahead_of(whole("a", 0), whole("b", 1, state=DRAINING)) is None


def test_nothing_is_fed_ahead_to_who_is_left_out():
    """Its early sum is lost with it: it is stale after this step."""
    peers = whole("a", 0), report("c", 0, early=WHOLE), whole("b", 1, WHOLE)
    ahead = ahead_of(*peers, left_out=frozenset({"c"}))
    assert ahead == Feed(4, dict.fromkeys(WHOLE, frozenset({0})), frozenset({"c"}))


def test_nothing_is_fed_ahead_while_a_stage_gets_a_step_again():
    """The others need the parameters of two updates before."""
    record = CommitRecord(3, 1.0)
    there = report("a", 0, step=4, last_commit=record, can_replay=True)
    action = decide(there, whole("b", 1), delayed_updates=True)
    assert isinstance(action, Close) and action.record == record
    assert action.ahead is None
