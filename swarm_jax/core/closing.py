"""What the leading trainer does next: the whole step protocol as one pure function.

The leader asks every peer for a ``Report`` and does what ``next_action`` says, again
and again (design, section 5). It remembers nothing else, so that take-over by another
trainer, retries and repair are the same loop.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from swarm_jax.core.ledger import missing_stages

ONLINE, JOINING, DRAINING, OFFLINE = "ONLINE", "JOINING", "DRAINING", "OFFLINE"

NO_LIVE_PEER = "no live peer"


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """How a step was committed; peers hand it on, so that others can follow.

    Attributes:
        gradient_norm: Over all stages; None when the step was skipped.
    """

    step: int
    gradient_norm: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """One peer's answer to ``collect``.

    Attributes:
        step: The step whose gradient it accumulates.
        lineage: Hash chain over all gradients it has applied: equal lineage means
            equal parameters.
        counted: Indices in its gradient sum.
        prepared_step: Step whose all-reduced gradient it holds, if any.
        last_commit: Record of its last commit, if any.
        losses: Loss sum of each counted index; last stage only.
    """

    peer: str
    stage: int
    state: str
    step: int
    lineage: str
    counted: frozenset[int] = frozenset()
    prepared_step: int | None = None
    last_commit: CommitRecord | None = None
    losses: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True)
class Feed:
    """Send the microbatches; each names the stages that lack it.

    Attributes:
        avoid: Peers that this step is closed without, so nothing goes to them.
    """

    step: int
    missing: Mapping[int, frozenset[int]]
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Drop:
    """An id is counted on two peers: this one, with the smaller sum, drops its own."""

    step: int
    peer: str


@dataclass(frozen=True, slots=True)
class Close:
    """All ledgers are exact: all-reduce inside each group, then commit."""

    step: int
    groups: Mapping[int, tuple[Report, ...]]


@dataclass(frozen=True, slots=True)
class CommitRest:
    """Some peers have committed this step: these must follow."""

    record: CommitRecord
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resync:
    """These peers are stale or of another lineage: they fetch their stage's state."""

    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done before each of ``stages`` gets a peer in the right state."""

    stages: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """Every stage has taken all its steps."""


Action = Feed | Drop | Close | CommitRest | Resync | Wait | Done


def next_action(
    reports: Iterable[Report],
    *,
    num_stages: int,
    steps: int,
    microbatches: int,
    left_out: frozenset[str] = frozenset(),
) -> Action:
    """Decides the leader's next action from what its peers just reported.

    Args:
        reports: Answers of this round; peers that did not answer are absent.
        steps: Steps of the run.
        microbatches: Microbatches per step.
        left_out: Peers that this step is closed without.
    """
    stages = _serving(reports, num_stages)
    if empty := tuple(stage for stage, peers in stages.items() if not peers):
        return Wait(empty, NO_LIVE_PEER)
    newest = {stage: max(p.step for p in peers) for stage, peers in stages.items()}
    low, high = min(newest.values()), max(newest.values())
    if low < high:
        return _finish_commit(stages, newest, low, high)
    current, stale = _split_by_lineage(stages, low)
    if stale:
        return Resync(tuple(sorted(p.peer for p in stale)))
    if low >= steps:
        return Done()
    members = {
        stage: [p for p in peers if p.peer not in left_out] or peers
        for stage, peers in current.items()
    }
    if twice := _first_overlap(members):
        return Drop(low, twice.peer)
    counted = {stage: [p.counted for p in peers] for stage, peers in members.items()}
    if missing := missing_stages(counted, microbatches):
        used = {peer.peer for peers in members.values() for peer in peers}
        return Feed(low, missing, left_out - used)
    return Close(low, {stage: tuple(peers) for stage, peers in members.items()})


def _serving(reports: Iterable[Report], num_stages: int) -> dict[int, list[Report]]:
    stages: dict[int, list[Report]] = {stage: [] for stage in range(num_stages)}
    for report in sorted(reports, key=lambda r: r.peer):
        if report.state in (ONLINE, DRAINING) and report.stage in stages:
            stages[report.stage].append(report)
    return stages


def _finish_commit(
    stages: Mapping[int, list[Report]], newest: Mapping[int, int], low: int, high: int
) -> Action:
    """Some stages are a step ahead: a commit was decided and must become whole."""
    behind = [stage for stage in stages if newest[stage] == low]
    records = {
        peer.last_commit
        for stage, peers in stages.items()
        for peer in peers
        if peer.step == high and peer.last_commit and peer.last_commit.step == low
    }
    if high - low > 1 or not records:
        return Wait(
            tuple(behind),
            f"no peer with the state of step {high} (the newest is at step {low})",
        )
    record = min(records, key=repr)
    skipped = record.gradient_norm is None
    ready = {
        stage: [
            p
            for p in stages[stage]
            if p.step == low and (skipped or p.prepared_step == low)
        ]
        for stage in behind
    }
    if unready := tuple(stage for stage, peers in ready.items() if not peers):
        return Wait(
            unready,
            f"no peer with the gradient of step {low}, which other stages have applied",
        )
    return CommitRest(record, tuple(p.peer for peers in ready.values() for p in peers))


def _split_by_lineage(
    stages: Mapping[int, list[Report]], step: int
) -> tuple[dict[int, list[Report]], list[Report]]:
    """Per stage the peers of its commonest lineage at ``step``, and all the others."""
    current: dict[int, list[Report]] = {}
    stale: list[Report] = []
    for stage, peers in stages.items():
        tally = Counter(p.lineage for p in peers if p.step == step)
        lineage = min(tally, key=lambda name: (-tally[name], name))
        current[stage] = [p for p in peers if p.step == step and p.lineage == lineage]
        stale += [p for p in peers if p not in current[stage]]
    return current, stale


def _first_overlap(members: Mapping[int, list[Report]]) -> Report | None:
    """Of the first two peers that counted the same id, the one with the smaller sum."""
    for peers in members.values():
        for i, one in enumerate(peers):
            for other in peers[i + 1 :]:
                if one.counted & other.counted:
                    return min(one, other, key=lambda p: (len(p.counted), p.peer))
    return None


def most_suspect(
    failures: Iterable[tuple[str, Iterable[str]]],
    groups: Mapping[int, Iterable[str]],
    left_out: frozenset[str],
) -> str | None:
    """Whom to leave out of a step after two void rounds of all-reduce.

    Args:
        failures: (peer, the peers it lacked); no names when it did not answer itself.
        groups: Peers of each stage's group.
        left_out: Those left out already.

    Returns:
        The most named peer of a stage that keeps another one, or None.
    """
    named: Counter[str] = Counter()
    for peer, lacked in failures:
        lacked = list(lacked)
        named.update(lacked or [peer] * 3)
        named.update([peer] if lacked else [])
    spare = {
        peer
        for group in groups.values()
        if len(set(group) - left_out) > 1
        for peer in group
        if peer not in left_out
    }
    candidates = sorted(set(named) & spare, key=lambda peer: (-named[peer], peer))
    return candidates[0] if candidates else None
