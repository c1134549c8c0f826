"""Which stage a new peer serves: the one that limits the swarm (design, section 6)."""

from collections.abc import Collection, Sequence

from swarm_jax.core.capacity import mean_of, poorest


def place(
    stages: Sequence[Collection[float]],
    newcomers: Collection[str],
    work: Sequence[float] | None = None,
) -> dict[str, int]:
    """Gives each newcomer a stage, one after the other in the order of their names.

    A stage without peers comes first, then the one with the least throughput. So
    newcomers that see the same spread in the same way, and none needs to be asked.

    Args:
        stages: Of each stage its peers' throughputs in tokens per second; 0 of a peer
            that has not been measured, which counts as the mean of those that have.
        work: Of each stage its cost per token, relative to the others; None: equal.
    """
    work = work or [1.0] * len(stages)
    speeds = [
        [rate * cost for rate in peers]
        for peers, cost in zip(stages, work, strict=True)
    ]
    mean = mean_of(speed for peers in speeds for speed in peers)
    totals = [
        sum(speed or mean for speed in peers) / cost
        for peers, cost in zip(speeds, work, strict=True)
    ]
    placed = {}
    for newcomer in sorted(newcomers):
        stage = placed[newcomer] = poorest(totals)
        totals[stage] += mean / work[stage]
    return placed
