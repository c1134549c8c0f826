"""What the peers of each stage can do together, from what they say of themselves.

A peer's *speed* is its throughput if its stage were of average work: it goes with the
peer to another stage. A stage's throughput is the sum of its peers' speeds over its
work; the swarm's is that of its slowest stage.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from swarm_jax.core.reports import JOINING, ONLINE


class Load(Protocol):
    """What a directory record says of a peer.

    Attributes:
        state: ONLINE, JOINING, DRAINING or OFFLINE.
        queue: Microbatches it holds.
        tokens_per_s: Measured throughput; 0 before the first measurement.
    """

    @property
    def state(self) -> str: ...
    @property
    def queue(self) -> int: ...
    @property
    def tokens_per_s(self) -> float: ...


Stages = Sequence[Mapping[str, Load]]
"""Of each stage the records of its peers, by peer id."""

Speeds = list[dict[str, float]]
"""Of each stage the speeds of its peers in tokens per second, by peer id."""


def speeds_of(stages: Stages, work: Sequence[float], same_speed: float) -> Speeds:
    """Speeds of all peers that serve or are about to (ONLINE, JOINING).

    Measurements are noisy and devices come in few kinds, so peers of about one speed
    count as equally fast; else noise alone would make one stage look richer than
    another. Who has not been measured counts as the mean of those who have.

    Args:
        work: Of each stage its cost per token, relative to the others.
        same_speed: Factor within which two speeds are of one kind.
    """
    measured = [
        {
            peer: record.tokens_per_s * cost
            for peer, record in records.items()
            if record.state in (ONLINE, JOINING)
        }
        for records, cost in zip(stages, work, strict=True)
    ]
    known = [speed for peers in measured for speed in peers.values() if speed > 0]
    kind = _kinds(known, same_speed)
    kind[0.0] = mean_of(kind[speed] for speed in known)
    return [{peer: kind[speed] for peer, speed in peers.items()} for peers in measured]


def mean_of(speeds: Iterable[float]) -> float:
    """Mean of those that are known (not 0); 1 if none is."""
    known = [speed for speed in speeds if speed > 0]
    return statistics.fmean(known) if known else 1.0


def totals_of(
    speeds: Sequence[Mapping[str, float]], work: Sequence[float]
) -> list[float]:
    """Throughput of each stage in tokens per second, exact in any order of peers."""
    return [
        math.fsum(peers.values()) / cost
        for peers, cost in zip(speeds, work, strict=True)
    ]


def poorest(totals: Sequence[float]) -> int:
    """The stage that limits the swarm; of several the first."""
    return min(range(len(totals)), key=totals.__getitem__)


def _kinds(speeds: Sequence[float], same_speed: float) -> dict[float, float]:
    """For each speed the mean of its kind, which is what lies around a median."""
    rest, kinds = sorted(speeds), {}
    while rest:
        middle = statistics.median_low(rest)
        low, high = middle / same_speed, middle * same_speed
        alike = [speed for speed in rest if low <= speed <= high]
        rest = [speed for speed in rest if not low <= speed <= high]
        kinds.update(dict.fromkeys(alike, statistics.fmean(alike)))
    return kinds
