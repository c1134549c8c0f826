"""What peers say of themselves to the leader."""

from collections.abc import Mapping
from dataclasses import dataclass

ONLINE, JOINING, DRAINING, OFFLINE = "ONLINE", "JOINING", "DRAINING", "OFFLINE"


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
        generation: How often the run went back, to a checkpoint or to step 0.
        step: The step whose gradient it accumulates.
        lineage: Hash chain over all gradients it has applied, by their digests or
            names: equal lineage means equal parameters.
        counted: Indices in its gradient sum.
        early: Indices in its sum of the next step, if updates are delayed.
        prepared_step: Step whose reduced gradient it holds, if any.
        can_replay: Whether it can still run microbatches of the step before.
        last_commit: Record of its last commit, if any.
        losses: Loss sum of each counted index; last stage only.
        saved: Steps of the checkpoints that it can restore its stage from.
        folder: Names the place that it saves to, the same for all who share it; empty
            for none.
        newest_heard: (generation, step) of the newest state that it has heard of.
    """

    peer: str
    stage: int
    state: str
    step: int
    lineage: str
    generation: int = 0
    counted: frozenset[int] = frozenset()
    prepared_step: int | None = None
    can_replay: bool = False
    last_commit: CommitRecord | None = None
    losses: Mapping[int, float] | None = None
    saved: frozenset[int] = frozenset()
    folder: str = ""
    newest_heard: tuple[int, int] = (0, 0)
    early: frozenset[int] = frozenset()

    def can_serve(self, step: int) -> bool:
        """Whether it can run microbatches of ``step``."""
        return self.step == step or (self.can_replay and self.step == step + 1)

    def can_restore(self, step: int) -> bool:
        """Whether it has that step's state saved; step 0 is made from a seed."""
        return step == 0 or step in self.saved
