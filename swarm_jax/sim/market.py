"""Traces of a spot market: when preemptible peers come and when they are taken away.

The trace that the paper replays is not public. These have its length, and the features
of such markets: capacity with a daily cycle; single preemptions all the time; now and
then many at once; replacements only after a while; and in the end a shortage.
"""

import math
from dataclasses import dataclass

import numpy as np

HOUR_S = 3600.0
STEP_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotMarket:
    """What a trace is drawn from.

    Attributes:
        hours: Length of a trace.
        peers: At the start, which is the peak of the daily cycle.
        daily_swing: Share of the capacity that is gone at the bottom of the cycle,
            12 hours from its peak.
        shortage_hours: How long before the end the capacity begins to shrink for good.
        shortage: Share of the capacity that is gone at the end.
        preemptions_per_hour: How often each peer is taken away on its own, at the peak
            of the capacity and where none is left; in between in proportion.
        reclaims_per_hour: How often many are taken away at once.
        reclaimed: Smallest and largest share of all peers that goes with a reclaim.
        reclaim_s: How long a reclaim takes.
        refill_s: Mean time until a missing peer is replaced.
    """

    hours: float = 32.0
    peers: int = 140
    daily_swing: float = 0.6
    shortage_hours: float = 3.0
    shortage: float = 0.85
    preemptions_per_hour: tuple[float, float] = (0.01, 1.0)
    reclaims_per_hour: float = 0.4
    reclaimed: tuple[float, float] = (0.1, 0.4)
    reclaim_s: float = 120.0
    refill_s: float = 1800.0

    def capacity(self, hour: float) -> float:
        """How many peers the market would give."""
        daily = 1 - self.daily_swing * (1 - math.cos(2 * math.pi * hour / 24)) / 2
        left = (self.hours - hour) / self.shortage_hours
        scarce = 1 - self.shortage * min(1.0, max(0.0, 1 - left))
        return self.peers * daily * scarce


@dataclass(frozen=True, slots=True)
class Change:
    """A peer comes, or one is taken away, at ``at_s``."""

    at_s: float
    comes: bool


def draw_trace(market: SpotMarket, seed: int) -> list[Change]:
    """One trace in order of time; ``market.peers`` are there before it begins."""
    chance = np.random.default_rng(seed)
    peers, reclaiming = market.peers, 0.0
    trace = []
    for step in range(int(market.hours * HOUR_S / STEP_S)):
        at_s = step * STEP_S
        if chance.random() < market.reclaims_per_hour * STEP_S / HOUR_S:
            reclaiming += peers * chance.uniform(*market.reclaimed)
        capacity = market.capacity(at_s / HOUR_S)
        calm, scarce = market.preemptions_per_hour
        hazard = calm + (scarce - calm) * (1 - capacity / market.peers)
        single = peers * hazard / HOUR_S
        together = (reclaiming + max(0.0, peers - capacity)) / market.reclaim_s
        replaced = max(0.0, capacity - peers) / market.refill_s
        gone = min(peers, chance.poisson((single + together) * STEP_S))
        come = chance.poisson(replaced * STEP_S)
        reclaiming *= 1 - STEP_S / market.reclaim_s
        peers += come - gone
        changes = [False] * gone + [True] * come
        times = np.sort(chance.uniform(at_s, at_s + STEP_S, len(changes)))
        order = chance.permutation(len(changes))
        trace += [Change(t, changes[i]) for t, i in zip(times, order, strict=True)]
    return trace
