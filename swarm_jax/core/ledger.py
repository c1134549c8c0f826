"""Which microbatches are in a gradient sum, and the arithmetic of ledgers.

Exactly once (design, section 8, invariant 1): in every stage the ledgers of its peers
are disjoint and together hold the whole step.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class Ledger:
    """Indices of the microbatches in one peer's gradient sum of one step.

    Each entry keeps the microbatch's loss sum (0 on all stages but the last), so that
    the logged loss is the loss of exactly what was counted.
    """

    def __init__(self):
        self._losses: dict[int, float] = {}

    def add(self, index: int, loss_sum: float) -> None:
        assert index not in self._losses, f"microbatch {index} counted twice"
        self._losses[index] = loss_sum

    def merge(self, losses: Mapping[int, float]) -> None:
        """Adds the ledger of a stage peer whose sum was added to this one's."""
        for index, loss_sum in losses.items():
            self.add(index, loss_sum)

    def clear(self) -> None:
        self._losses.clear()

    def __contains__(self, index: int) -> bool:
        return index in self._losses

    def __len__(self) -> int:
        return len(self._losses)

    @property
    def counted(self) -> frozenset[int]:
        return frozenset(self._losses)

    @property
    def losses(self) -> dict[int, float]:
        return dict(self._losses)


def ledger_digest(counted: Iterable[int]) -> str:
    """Names the exact contents of a ledger; ``prepare`` carries one per member."""
    text = ",".join(map(str, sorted(counted)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def missing_stages(
    counted_by_stage: Mapping[int, Iterable[frozenset[int]]], microbatches: int
) -> dict[int, frozenset[int]]:
    """For each index that some stage lacks, the stages that lack it."""
    have = {stage: set().union(*sums) for stage, sums in counted_by_stage.items()}
    lacking = {
        index: frozenset(stage for stage in have if index not in have[stage])
        for index in range(microbatches)
    }
    return {index: stages for index, stages in lacking.items() if stages}


@dataclass(frozen=True, slots=True)
class Audit:
    """How often the microbatches of one closed step were counted.

    Attributes:
        counted_once: Exactly once in every stage.
        lost: In some stage not at all.
        counted_twice: In some stage more than once.
    """

    expected: int
    counted_once: int
    lost: int
    counted_twice: int

    @property
    def exact(self) -> bool:
        return self.counted_once == self.expected


def audit(
    counted_by_stage: Mapping[int, Iterable[frozenset[int]]], microbatches: int
) -> Audit:
    """Counts, over the ledgers that a step was closed with, what went right."""
    tallies = [
        Counter(index for counted in sums for index in counted)
        for sums in counted_by_stage.values()
    ]
    indices = range(microbatches)
    return Audit(
        expected=microbatches,
        counted_once=sum(all(t[i] == 1 for t in tallies) for i in indices),
        lost=sum(any(t[i] == 0 for t in tallies) for i in indices),
        counted_twice=sum(any(t[i] > 1 for t in tallies) for i in indices),
    )
