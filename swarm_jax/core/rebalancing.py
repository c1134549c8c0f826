"""Which peers change their stage, so that no stage starves (design, section 6).

Two algorithms over the same records. Every peer evaluates the same function on the same
records, and so knows without asking whether it is the one that moves:

``move_by_queue``  the paper's (SWARM, section 3.2): of the least loaded stage, the
    least busy peer moves to the most loaded one. One move per period.
``rebalance``  ours: moves that together make the slowest stage faster. It counts peers
    that are on their way, knows unequal peers, weighs the gain against what moving
    costs, ignores noise, and moves as many as it takes.

``rescue`` is the part of ours that cannot wait: the state of a stage of one peer dies
with it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from swarm_jax.core.capacity import Stages, poorest, speeds_of, totals_of
from swarm_jax.core.reports import ONLINE

SAFE_PEERS = 2
"""A stage of fewer loses its state when one dies; no stage gives so many away."""

CERTAINTY = 3.0
"""Standard deviations that a gain must stand out from the error of measurement."""

ROUNDING = 1e-9


class Rules(Protocol):
    """When a move is worth it; ``RebalancingConfig`` says what each means."""

    gain_threshold: float
    measurement_error: float
    same_speed: float
    moving_share: float
    migration_s: float
    horizon_s: float


@dataclass(frozen=True, slots=True)
class Move:
    """One peer changes its stage.

    Attributes:
        gain: Predicted rise of the swarm's throughput by all moves that were decided
            together, as a share of what it is; infinite where it is 0.
        reason: For logs.
    """

    peer: str
    source: int
    target: int
    gain: float = 0.0
    reason: str = ""


def move_by_queue(stages: Stages) -> Move | None:
    """The paper's move, or None where all stages are equally loaded.

    Of equally loaded stages the first counts, of equally busy peers the first by id.
    The last ONLINE peer of a stage stays, which the paper does not say.
    """
    loads = _loads_s(stages)
    source = min(range(len(loads)), key=loads.__getitem__)
    target = most_loaded(stages)
    online = [p for p, record in stages[source].items() if record.state == ONLINE]
    if loads[source] == loads[target] or len(online) < 2:
        return None
    peer = min(online, key=lambda p: (stages[source][p].queue, p))
    reason = (
        f"stage {target} has work for {loads[target]:.3g} s, stage {source} for "
        f"{loads[source]:.3g} s, and {peer} is its least busy peer"
    )
    return Move(peer, source, target, 0.0, reason)


def most_loaded(stages: Stages) -> int:
    """Where the paper sends a new peer; ours goes by ``placement.place``."""
    loads = _loads_s(stages)
    return max(range(len(loads)), key=loads.__getitem__)


def rescue(
    stages: Stages, rules: Rules, work: Sequence[float] | None = None
) -> list[Move]:
    """A second peer for each stage that has come down to one, and a first one for none.

    To be asked whenever the records change. The richest stage that keeps
    ``SAFE_PEERS`` gives; for a stage without any, one that keeps its last will do.
    """
    return _Draft(stages, rules, work).rescued()


def rebalance(
    stages: Stages,
    rules: Rules,
    *,
    turn: int,
    work: Sequence[float] | None = None,
    remaining_s: float = math.inf,
) -> list[Move]:
    """All moves to begin now, those of ``rescue`` first.

    Even turns move peers to later stages and odd ones to earlier stages. So whatever
    two peers see of the swarm, in one turn they never undo each other's moves.

    Args:
        turn: Number of the period, by the directory's clock: the same for all peers.
        work: Of each stage its cost per token, relative to the others; None: equal.
        remaining_s: How long the run still takes.
    """
    draft = _Draft(stages, rules, work)
    moves = draft.rescued()
    horizon_s = min(rules.horizon_s, remaining_s)
    return moves + [
        move
        for move in draft.improvements(horizon_s)
        if (move.target > move.source) == (turn % 2 == 0)
    ]


class _Draft:
    """The stages as they will be when all peers under way, and those named, are there.

    Attributes:
        totals: Throughput of each stage then, in tokens per second.
        serving: Throughput of each stage now, less that of peers named to move.
    """

    def __init__(
        self, stages: Stages, rules: Rules, work: Sequence[float] | None
    ) -> None:
        self._stages = stages
        self._rules = rules
        self._work = work or [1.0] * len(stages)
        self._speeds = speeds_of(stages, self._work, rules.same_speed)
        self._present = [len(peers) for peers in self._speeds]
        self._online = [
            {p: s for p, s in peers.items() if records[p].state == ONLINE}
            for peers, records in zip(self._speeds, stages, strict=True)
        ]
        self._giving: set[int] = set()
        self._taking: set[int] = set()
        self.totals = totals_of(self._speeds, self._work)
        self.serving = totals_of(self._online, self._work)

    def rescued(self) -> list[Move]:
        """Moves that keep each stage's state at two peers; the draft carries them out.

        None that would make the swarm slower.
        """
        moves = []
        for target, present in enumerate(self._present):
            before = min(self.totals)
            if present >= SAFE_PEERS:
                continue
            if (move := self._gift(target, above=before * (1 - ROUNDING))) is None:
                continue
            self._carry_out(move)
            left = self._present[move.source]
            danger = (
                f"stage {target} has one peer, and its state would die with it"
                if present
                else f"stage {target} has no peer"
            )
            moves.append(
                replace(
                    move,
                    gain=_relative(before, min(self.totals)),
                    reason=f"{danger}; stage {move.source} keeps {left}",
                )
            )
        return moves

    def improvements(self, horizon_s: float) -> list[Move]:
        """The shortest row of moves after which the slowest stage is fastest.

        None where that is not worth it: the rise must stand out from the error of
        measurement and bring more, while it lasts, than moving costs.
        """
        before, serving = min(self.totals), min(self.serving)
        required = max(self._rules.gain_threshold * before, self._error())
        after, lost, count = before, 0.0, 0
        row: list[Move] = []
        for _ in range(self._most_moves()):
            if (move := self._improvement()) is None:
                break
            self._carry_out(move)
            row.append(move)
            if min(self.totals) > after * (1 + ROUNDING):
                after, count = min(self.totals), len(row)
                lost = max(0.0, serving - min(self.serving))
        brought_tokens = (after - before) * (horizon_s - self._rules.migration_s)
        lost_tokens = lost * self._rules.migration_s
        if after - before <= required or brought_tokens <= lost_tokens:
            return []
        gain = _relative(before, after)
        reason = (
            f"{count} moved, the slowest stage rises from {before:,.0f} to "
            f"{after:,.0f} tokens/s ({gain:+.1%})"
        )
        return [replace(move, gain=gain, reason=reason) for move in row[:count]]

    def _improvement(self) -> Move | None:
        target = poorest(self.totals)
        return self._gift(target, above=self.totals[target] * (1 + ROUNDING))

    def _gift(self, target: int, above: float) -> Move | None:
        """The richest stage's peer after whose move the poorer of the two is richest.

        The next richest stage's if that would still not be above ``above``. Of peers
        that are as good the least busy moves. No stage both gives and takes: of an
        exchange one half may make the swarm slower, and not all moves begin in one
        turn.
        """
        if target in self._giving:
            return None
        keep = SAFE_PEERS if self._present[target] else 1
        for source in sorted(range(len(self.totals)), key=lambda s: -self.totals[s]):
            if source == target or source in self._taking:
                continue
            if len(self._online[source]) <= keep:
                continue
            records = self._stages[source]
            outcome = {
                peer: min(
                    self.totals[source] - speed / self._work[source],
                    self.totals[target] + speed / self._work[target],
                )
                for peer, speed in self._online[source].items()
            }
            best = min(outcome, key=lambda p: (-outcome[p], records[p].queue, p))
            if outcome[best] > above:
                return Move(best, source, target)
        return None

    def _carry_out(self, move: Move) -> None:
        speed = self._online[move.source].pop(move.peer)
        given = speed / self._work[move.source]
        self.totals[move.source] -= given
        self.serving[move.source] -= given
        self.totals[move.target] += speed / self._work[move.target]
        self._giving.add(move.source)
        self._taking.add(move.target)
        self._present[move.source] -= 1
        self._present[move.target] += 1

    def _most_moves(self) -> int:
        """At least one for each stage: several may be equally slow."""
        return max(
            len(self._stages), int(self._rules.moving_share * sum(self._present))
        )

    def _error(self) -> float:
        """How far the poorest stage may seem behind the richest by error alone.

        In tokens per second. Peers of one kind count as equally fast, so what is known
        the less, the fewer peers there are of a kind, is its mean; and an error of it
        matters as far as the two stages differ in how many they have.
        """
        poor, rich = poorest(self.totals), self.totals.index(max(self.totals))
        of_kind = Counter(speed for peers in self._speeds for speed in peers.values())
        squares = []
        for speed, peers in of_kind.items():
            in_poor, in_rich = (
                sum(other == speed for other in self._speeds[stage].values())
                / self._work[stage]
                for stage in (poor, rich)
            )
            squares.append((speed * (in_rich - in_poor)) ** 2 / peers)
        error = self._rules.measurement_error * math.sqrt(math.fsum(squares))
        return CERTAINTY * error


def _loads_s(stages: Stages) -> list[float]:
    """The time that each stage needs for the microbatches that its peers hold."""
    work = [1.0] * len(stages)
    totals = totals_of(speeds_of(stages, work, same_speed=1.0), work)
    held = [sum(record.queue for record in peers.values()) for peers in stages]
    return [
        queue / total if total else math.inf
        for queue, total in zip(held, totals, strict=True)
    ]


def _relative(before: float, after: float) -> float:
    return after / before - 1 if before else math.inf
