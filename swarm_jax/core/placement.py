"""Which stage a new peer serves: the one that limits the swarm (design, section 6)."""

import statistics
from collections.abc import Collection, Sequence


def place(
    stages: Sequence[Collection[float]], newcomers: Collection[str]
) -> dict[str, int]:
    """Gives each newcomer a stage, one after the other in the order of their names.

    A stage without peers comes first, then the one with the least throughput. So
    newcomers that see the same spread in the same way, and none needs to be asked.

    Args:
        stages: Of each stage its peers' throughputs in tokens per second; 0 of a peer
            that has not been measured, which counts as the mean of those that have.
    """
    measured = [rate for peers in stages for rate in peers if rate > 0]
    mean = statistics.fmean(measured) if measured else 1.0
    totals = [sum(rate or mean for rate in peers) for peers in stages]
    placed = {}
    for newcomer in sorted(newcomers):
        stage = min(range(len(totals)), key=totals.__getitem__)
        placed[newcomer] = stage
        totals[stage] += mean
    return placed
