"""When the last microbatches of a step are not waited for any longer.

A router gives a slow peer little work, but some; when all others are done, the step
waits for that (the stragglers of Dean & Ghemawat 2004, section 3.6). So what is much
later than usual is given up, and sent again past those who are slow.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LATE = 2.0
"""Times the median time of the answers so far."""
FEW = 1 / 8
"""Of the answers so far: no more are given up, since all that is under way is."""
SLOW = 2.0
"""Times the mean time of a stage's fastest peer."""


class Pace:
    """How long the microbatches of one feed take."""

    def __init__(self):
        self._took_s: list[float] = []
        self._hops_s: dict[int, dict[str, list[float]]] = defaultdict(dict)

    def answered(self, took_s: float, trace: Iterable[Mapping[str, Any]]) -> None:
        """Notes an answer.

        Args:
            trace: Its hops. Peers wrote them: what is not as it should be is left out.
        """
        self._took_s.append(took_s)
        for hop in trace:
            match hop:
                case {"stage": int(stage), "peer": str(peer), "hop_s": float(hop_s)}:
                    if math.isfinite(hop_s):
                        self._hops_s[stage].setdefault(peer, []).append(hop_s)

    def patience_s(self, waiting: int) -> float | None:
        """How long a microbatch may take if all that is left are so many; None: any."""
        if waiting > FEW * len(self._took_s):
            return None
        return LATE * statistics.median(self._took_s)

    def fast(self) -> frozenset[str]:
        """Those of every stage that do not take much longer than its fastest."""
        return frozenset(
            peer for hops_s in self._hops_s.values() for peer in _fast(hops_s)
        )


def _fast(hops_s: Mapping[str, Sequence[float]]) -> Iterable[str]:
    means_s = {peer: statistics.fmean(times_s) for peer, times_s in hops_s.items()}
    bound_s = SLOW * min(means_s.values())
    return [peer for peer, mean_s in means_s.items() if mean_s <= bound_s]
