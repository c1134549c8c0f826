"""What the leading trainer does next: the whole step protocol as one pure function.

The leader asks every peer for a ``Report`` and does what ``next_action`` says, again
and again. It remembers nothing else but how far the run has been, so that take-over by
another trainer, retries and repair are the same loop (``docs/protocol.md``).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from swarm_jax.core.ledger import missing_stages
from swarm_jax.core.newest import Newest
from swarm_jax.core.reports import DRAINING, JOINING, ONLINE, CommitRecord, Report

NO_LIVE_PEER = "no live peer"

Groups = Mapping[int, tuple[Report, ...]]


@dataclass(frozen=True, slots=True)
class Feed:
    """Send the microbatches; each names the stages that lack it.

    Attributes:
        avoid: Peers that this step is closed without, so nothing goes to them.
    """

    step: int
    missing: Mapping[int, frozenset[int]]
    avoid: frozenset[str] = frozenset()
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Drop:
    """An id is counted on two peers: this one, with the smaller sum, drops its own."""

    step: int
    peer: str
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Close:
    """All ledgers of these stages are exact: all-reduce in each group, then commit.

    Attributes:
        joiners: Peers that are still fetching their stage's state: they contribute
            nothing, and keep the gradient to apply it afterwards.
        record: How other stages have committed this step already: prepare only, the
            next round commits with this record.
        donors: If an end that is tied to another gets the step again: peers of that
            other one, which give the gradient that they have applied.
        ahead: What can be sent of the next step meanwhile, with delayed updates.
    """

    step: int
    groups: Groups
    joiners: Groups = field(default_factory=dict)
    record: CommitRecord | None = None
    generation: int = 0
    donors: tuple[str, ...] = ()
    ahead: Feed | None = None


@dataclass(frozen=True, slots=True)
class CommitRest:
    """Some peers have committed this step: these must follow."""

    record: CommitRecord
    peers: tuple[str, ...]
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Resync:
    """These peers are stale or of another lineage: they fetch their stage's state."""

    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Restart:
    """The run went back to ``step``: these peers, of stages that did not, go too."""

    generation: int
    step: int
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done before each of ``stages`` gets a peer in the right state.

    Attributes:
        is_lost: A stage's state is gone unless one of its former peers comes back.
    """

    stages: tuple[int, ...]
    reason: str
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """Every stage has taken all its steps."""


Action = Feed | Drop | Close | CommitRest | Resync | Restart | Wait | Done


def next_action(
    reports: Iterable[Report],
    *,
    num_stages: int,
    steps: int,
    microbatches: int,
    newest_seen: Newest,
    left_out: frozenset[str] = frozenset(),
    tied_stages: frozenset[int] = frozenset(),
    delayed_updates: bool = False,
) -> Action:
    """Decides the leader's next action from what its peers just reported.

    Args:
        reports: Answers of this round; peers that did not answer are absent.
        steps: Steps of the run.
        microbatches: Microbatches per step.
        newest_seen: How far the run has been; from less it does not go on by itself.
        left_out: Peers that this step is closed without, if their stages have others.
        tied_stages: The two that have a copy of one table each, if there are such.
        delayed_updates: Whether a step's gradients are at the parameters before the
            last update, so that its microbatches may run while that is made.
    """
    reports = list(reports)
    generation = max((report.generation for report in reports), default=0)
    stages = _serving(reports, num_stages)
    if empty := tuple(stage for stage, peers in stages.items() if not peers):
        return Wait(empty, NO_LIVE_PEER)
    if going_back := _behind_newest(stages, newest_seen):
        return going_back
    begun = min(report.step for report in reports if report.generation == generation)
    if behind := _behind_restart(stages, generation, begun):
        return behind
    newest = {stage: max(p.step for p in peers) for stage, peers in stages.items()}
    low, high = min(newest.values()), max(newest.values())
    has_next = delayed_updates and low + 1 < steps
    step = _Step(low, generation, microbatches, left_out, tied_stages, has_next)
    if low < high:
        return _finish_commit(stages, high, step)
    current, stale = _split_by_lineage(stages, low, left_out)
    if stale:
        return _commit_late(stale, current, generation) or _resync(stale)
    if low >= steps:
        return Done()
    return step.next_action(current, _joiners(reports))


def _serving(reports: Iterable[Report], num_stages: int) -> dict[int, list[Report]]:
    stages: dict[int, list[Report]] = {stage: [] for stage in range(num_stages)}
    for report in sorted(reports, key=lambda r: r.peer):
        if report.state in (ONLINE, DRAINING) and report.stage in stages:
            stages[report.stage].append(report)
    return stages


def _joiners(reports: Iterable[Report]) -> dict[int, list[Report]]:
    joiners: dict[int, list[Report]] = {}
    for report in sorted(reports, key=lambda r: r.peer):
        if report.state == JOINING:
            joiners.setdefault(report.stage, []).append(report)
    return joiners


def _behind_newest(
    stages: Mapping[int, list[Report]], newest_seen: Newest
) -> CommitRest | Restart | Wait | None:
    """What to do when all who have the newest state are gone.

    Who holds the gradient of the last commit follows. The state that a run is started
    again with is had by all who have it saved. Any other state is lost unless somebody
    brings it back.
    """
    peers = [peer for group in stages.values() for peer in group]
    newest = max((peer.generation, peer.step) for peer in peers)
    if newest >= newest_seen.position:
        return None
    generation, step = newest_seen.position
    if generation > newest[0]:
        return _restart(stages, generation, step)
    if record := newest_seen.last_commit:
        current = [peer for peer in peers if peer.generation == generation]
        if ready := sorted(p.peer for p in current if _can_follow(p, record)):
            return CommitRest(record, tuple(ready), generation)
    reason = (
        f"no peer with the state of step {step} (the newest is at step {newest[1]})"
    )
    return Wait(tuple(stages), reason, is_lost=True)


def _can_follow(peer: Report, record: CommitRecord) -> bool:
    """Whether it can commit this step: a skipped one needs no gradient."""
    return peer.step == record.step and (
        record.gradient_norm is None or peer.prepared_step == record.step
    )


def _behind_restart(
    stages: Mapping[int, list[Report]], generation: int, step: int
) -> Resync | Restart | Wait | None:
    """What to do with peers that a restart of the run, at ``step``, has not reached."""
    old = {
        stage: [p for p in peers if p.generation < generation]
        for stage, peers in stages.items()
    }
    behind = {s: peers for s, peers in old.items() if len(peers) == len(stages[s])}
    if not behind:
        resync = sorted(p.peer for peers in old.values() for p in peers)
        return Resync(tuple(resync)) if resync else None
    return _restart(behind, generation, step)


def _restart(
    stages: Mapping[int, list[Report]], generation: int, step: int
) -> Restart | Wait:
    """Takes these stages to the state that the run is started again with."""
    able = {
        stage: [p.peer for p in peers if p.can_restore(step)]
        for stage, peers in stages.items()
    }
    if unable := tuple(stage for stage, peers in able.items() if not peers):
        reason = f"no peer can go back to step {step}, as the run did"
        return Wait(unable, reason, is_lost=True)
    peers = sorted(peer for stage in able.values() for peer in stage)
    return Restart(generation, step, tuple(peers))


@dataclass(frozen=True, slots=True)
class _Step:
    """The step that is in progress, in some stages or in all."""

    number: int
    generation: int
    microbatches: int
    left_out: frozenset[str]
    tied_stages: frozenset[int]
    may_feed_ahead: bool = False
    record: CommitRecord | None = None
    donors: tuple[str, ...] = ()

    def next_action(
        self,
        current: Mapping[int, Sequence[Report]],
        joiners: Mapping[int, Sequence[Report]],
    ) -> Action:
        """Feeds what is missing in the stages of ``current``, or closes the step."""
        members = {
            stage: [p for p in peers if p.peer not in self.left_out] or peers
            for stage, peers in current.items()
        }
        if twice := _first_overlap(members):
            return Drop(self.number, twice.peer, self.generation)
        counted = {
            stage: [p.counted for p in peers] for stage, peers in members.items()
        }
        if missing := missing_stages(counted, self.microbatches):
            return self._feed(members, missing)
        waiting = {
            stage: tuple(
                p for p in joiners.get(stage, ()) if p.peer not in self.left_out
            )
            for stage in members
        }
        groups = {stage: tuple(peers) for stage, peers in members.items()}
        ahead = None
        if self.may_feed_ahead and self.record is None:
            ahead = self._ahead(members)
        return Close(
            self.number,
            groups,
            waiting,
            self.record,
            self.generation,
            self.donors,
            ahead,
        )

    def _ahead(self, members: Mapping[int, Sequence[Report]]) -> Feed | None:
        """What of the next step nobody has counted yet; None: nothing can be fed.

        All stages are at this step, so all have the parameters that it runs with. What
        is lost of it, or counted twice, is found when this step is committed.
        """
        early = {stage: [p.early for p in peers] for stage, peers in members.items()}
        missing = missing_stages(early, self.microbatches)
        feed = self._feed(members, missing)
        if not missing or not isinstance(feed, Feed):
            return None
        return replace(feed, step=self.number + 1)

    def _feed(
        self,
        members: Mapping[int, Sequence[Report]],
        missing: Mapping[int, frozenset[int]],
    ) -> Action:
        leaving = tuple(
            stage
            for stage, peers in members.items()
            if all(p.state == DRAINING for p in peers)
        )
        if leaving:
            return Wait(leaving, "its only peers are leaving")
        used = {peer.peer for peers in members.values() for peer in peers}
        return Feed(self.number, missing, self.left_out - used, self.generation)


def _finish_commit(
    stages: Mapping[int, list[Report]], high: int, step: _Step
) -> Action:
    """Some stages are a step ahead: a commit was decided and must become whole.

    A stage whose prepared gradient died gets the step again: the others still have its
    parameters, so long as the next one has not begun.
    """
    low = step.number
    behind = {
        s: peers for s, peers in stages.items() if max(p.step for p in peers) == low
    }
    ahead = {s: peers for s, peers in stages.items() if s not in behind}
    records = {
        peer.last_commit
        for peers in ahead.values()
        for peer in peers
        if peer.step == high and peer.last_commit and peer.last_commit.step == low
    }
    if high - low > 1 or not records:
        reason = f"no peer with the state of step {high} (the newest is at step {low})"
        return Wait(tuple(behind), reason, is_lost=True)
    record = min(records, key=repr)
    ready = [
        peer.peer
        for peers in behind.values()
        for peer in peers
        if _can_follow(peer, record)
    ]
    if ready:
        return CommitRest(record, tuple(ready), step.generation)
    if unable := tuple(
        s for s, peers in ahead.items() if not any(p.can_serve(low) for p in peers)
    ):
        reason = (
            f"no peer with the gradient of step {low}, which stages "
            f"{', '.join(map(str, unable))} have applied and can no longer replay"
        )
        return Wait(tuple(behind), reason, is_lost=True)
    current, stale = _split_by_lineage(behind, low, step.left_out)
    if stale:
        return _resync(stale)
    step = replace(step, record=record)
    if step.tied_stages & behind.keys() and step.tied_stages & ahead.keys():
        (end,) = step.tied_stages & ahead.keys()
        if not (donors := _donors(ahead[end], high)):
            return _commit_donor(ahead[end], record, step) or Wait(
                tuple(behind),
                f"no peer with the tied gradient of step {low}, which stage {end} has "
                "applied and no longer keeps",
                is_lost=True,
            )
        step = replace(step, donors=donors)
    return step.next_action(current, {})


def _donors(peers: Sequence[Report], step: int) -> tuple[str, ...]:
    """Who keeps what it applied to get to ``step``; the commonest lineage first."""
    able = [peer for peer in peers if peer.step == step and peer.can_replay]
    tally = Counter(peer.lineage for peer in able)
    able.sort(key=lambda p: (-tally[p.lineage], p.lineage, p.peer))
    return tuple(peer.peer for peer in able)


def _commit_donor(
    peers: Sequence[Report], record: CommitRecord, step: _Step
) -> CommitRest | None:
    """Who missed the commit of this step holds its gradient still."""
    late = sorted(peer.peer for peer in peers if _can_follow(peer, record))
    return CommitRest(record, tuple(late), step.generation) if late else None


def _commit_late(
    stale: Sequence[Report],
    current: Mapping[int, Sequence[Report]],
    generation: int,
) -> CommitRest | None:
    """Peers that only missed the last commit follow, without fetching anything."""
    records = {p.last_commit for peers in current.values() for p in peers}
    for record in sorted(filter(None, records), key=repr):
        if late := [p.peer for p in stale if p.step == p.prepared_step == record.step]:
            return CommitRest(record, tuple(sorted(late)), generation)
    return None


def _resync(stale: Sequence[Report]) -> Resync:
    return Resync(tuple(sorted(p.peer for p in stale)))


def _split_by_lineage(
    stages: Mapping[int, list[Report]], step: int, left_out: frozenset[str]
) -> tuple[dict[int, list[Report]], list[Report]]:
    """Per stage the peers of its commonest lineage at ``step``, and all the others.

    One that is left out is not told to follow: it would be stale again after this step.
    """
    current: dict[int, list[Report]] = {}
    stale: list[Report] = []
    for stage, peers in stages.items():
        lineage = _commonest_lineage([p for p in peers if p.step == step])
        current[stage] = [p for p in peers if p.step == step and p.lineage == lineage]
        others = (p for p in peers if p not in current[stage])
        stale += [p for p in others if p.peer not in left_out]
    return current, stale


def _commonest_lineage(peers: Sequence[Report]) -> str:
    """Of equally common ones that whose peers have counted more: less is lost."""
    tally = Counter(peer.lineage for peer in peers)
    counted: Counter[str] = Counter()
    for peer in peers:
        counted[peer.lineage] += len(peer.counted)
    return min(tally, key=lambda name: (-tally[name], -counted[name], name))


def _first_overlap(members: Mapping[int, Sequence[Report]]) -> Report | None:
    """Of the first two peers that counted the same id, the one with the smaller sum.

    Of equal sums that of a peer which is leaving: it has just handed over its own.
    """
    for peers in members.values():
        for i, one in enumerate(peers):
            for other in peers[i + 1 :]:
                if one.counted & other.counted:
                    return min(one, other, key=_worth)
    return None


def _worth(report: Report) -> tuple[int, bool, str]:
    return len(report.counted), report.state != DRAINING, report.peer


def most_suspect(
    rounds: Sequence[Mapping[str, Iterable[str]]],
    groups: Mapping[int, Iterable[str]],
    left_out: frozenset[str],
) -> str | None:
    """Whom to leave out of a step after two void rounds of all-reduce.

    Args:
        rounds: Of each void round, the newest last: who failed in it, and the peers
            that each of them lacked; no names when it did not answer itself.
        groups: Peers of each stage's group.
        left_out: Those left out already.

    Returns:
        The most named peer of a stage that keeps another one, or None. Where all of a
        group lack peers of other groups alone, now, these are at fault and it is not.
    """
    groups = {stage: set(group) - left_out for stage, group in groups.items()}
    members = set().union(*groups.values())
    let_down = {
        peer
        for peer, lacked in rounds[-1].items()
        if lacked and not members.intersection(lacked)
    }
    named: Counter[str] = Counter()
    for peer, lacked in (failure for round_ in rounds for failure in round_.items()):
        named.update(lacked or [peer] * 3)
        named.update([peer] if lacked else [])
    spare = {
        peer
        for group in groups.values()
        if len(group) > 1 and not group <= let_down
        for peer in group
    }
    candidates = sorted(set(named) & spare, key=lambda peer: (-named[peer], peer))
    return candidates[0] if candidates else None
