"""Figures of a soak, from the times at which steps closed and faults were made.

**Recovery** of a fault is measured by steps, since those are what the trainers record:
from the fault until the end of the first whole step at 0.9 of the survivors' calculated
best. A step is whole if the one that was in progress at the fault has closed before it.
That one closes only when each of its microbatches is counted once: all that the lost
peer held has a new owner. So a fault that hits nothing takes a step to recover from,
and one after which no step is fast enough is never recovered from.

**The survivors' calculated best** is the fault-free speed times the share of peers that
are left in the stage that lost most of its own: after the fault, or after a later one
if that left fewer. Peers of one machine share its cores, so that survivors may do
better than that.

**Fault-free speed** is that of the same run before its first fault.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from swarm_jax.metrics import is_validation

RECOVERED = 0.9
"""Share of the survivors' calculated best at which throughput is back."""

AUDITED = ("expected", "counted_once", "lost", "counted_twice")


@dataclass(frozen=True, slots=True)
class Close:
    """A step was closed.

    Attributes:
        at_s: When the trainer knew that it was committed.
        tokens: Loss tokens of the step; 0 of one that was skipped.
    """

    at_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A peer was taken away.

    Attributes:
        share: Of the peers that are left, in the stage that has the smallest.
        what: For people.
    """

    at_s: float
    share: float
    what: str = ""


def tokens_per_s(closes: Sequence[Close], since_s: float, until_s: float) -> float:
    """Speed from the first to the last step that closed in a period; 0 of less."""
    period = [close for close in closes if since_s <= close.at_s <= until_s]
    if len(period) < 2:
        return 0.0
    tokens = sum(close.tokens for close in period[1:])
    return tokens / (period[-1].at_s - period[0].at_s)


def recovery_s(
    fault: Fault,
    faults: Sequence[Fault],
    closes: Sequence[Close],
    fault_free_tokens_per_s: float,
) -> float | None:
    """Time until the swarm recovered (see above), in seconds; None: it did not.

    Args:
        faults, closes: Of the whole run; the closes by time.
    """
    later = [close for close in closes if close.at_s >= fault.at_s]
    for before, close in pairwise(later):
        left = [f.share for f in faults if fault.at_s <= f.at_s <= close.at_s]
        enough = RECOVERED * min(left) * fault_free_tokens_per_s
        if close.tokens >= enough * (close.at_s - before.at_s):
            return close.at_s - fault.at_s
    return None


def smallest_share(online: Mapping[int, Sequence[str]], peers_per_stage: int) -> float:
    """Share of serving peers in the stage that has the fewest; at most 1."""
    fewest = min((len(names) for names in online.values()), default=0)
    return min(1.0, fewest / peers_per_stage)


def recovery_figures(
    faults: Sequence[Fault], closes: Sequence[Close], fault_free_tokens_per_s: float
) -> dict[str, Any]:
    """Recoveries one by one and in percentiles; without one, a fault is the slowest."""
    times_s = [
        recovery_s(fault, faults, closes, fault_free_tokens_per_s) for fault in faults
    ]
    recovered_s = sorted(time_s for time_s in times_s if time_s is not None)
    ranked_s = recovered_s + [None] * (len(faults) - len(recovered_s))
    return {
        "faults": len(faults),
        "recoveries": len(recovered_s),
        "recovery_p50_s": percentile(ranked_s, 50),
        "recovery_p95_s": percentile(ranked_s, 95),
        "fault_log": [
            asdict(fault) | {"recovery_s": time_s}
            for fault, time_s in zip(faults, times_s, strict=True)
        ],
    }


def percentile(ranked: Sequence[float | None], percent: float) -> float | None:
    """Nearest rank; None of nothing."""
    if not ranked:
        return None
    return ranked[max(1, math.ceil(percent / 100 * len(ranked))) - 1]


def step_figures(records: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Steps, losses and microbatch counts of all trainers together.

    A trainer that is killed between a step's commit and its record takes the record
    with it: the step was taken, but what it counted is not known here.

    Args:
        records: The last record of each step.
    """
    taken = [record for _, record in sorted(records.items())]
    trained = [record for record in taken if not record.get("skipped")]
    validation = {
        name: loss
        for record in taken
        for name, loss in record.items()
        if is_validation(name) and loss is not None
    }
    audit = {
        f"microbatches_{name}": sum(r[f"microbatches_{name}"] for r in trained)
        for name in AUDITED
    }
    return {
        "steps": max(records, default=0),
        "steps_without_record": max(records, default=0) - len(records),
        "skipped_steps": len(taken) - len(trained),
        "final_train_loss": trained[-1]["train_loss"] if trained else None,
        "validation_loss": None,
        **validation,
        **audit,
    }


def loss_difference(
    losses: Mapping[int, float], control: Mapping[int, float]
) -> float | None:
    """Largest relative difference of the losses at the same steps; None: no such."""
    shared = losses.keys() & control.keys()
    return max((abs(losses[s] / control[s] - 1) for s in shared), default=None)


def join_median_s(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Median of ``join_to_first_microbatch_s`` over the records that have it."""
    key = "join_to_first_microbatch_s"
    times_s = [record[key] for record in records if record.get(key) is not None]
    return statistics.median(times_s) if times_s else None


def mean_share(shares: Sequence[tuple[float, float]], since_s: float) -> float | None:
    """Mean over the samples (time, share) since a moment; None without one."""
    values = [share for at_s, share in shares if at_s >= since_s]
    return statistics.fmean(values) if values else None
