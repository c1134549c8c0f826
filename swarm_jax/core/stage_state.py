"""What a stage server knows of its place in the step protocol: no tensors, no I/O."""

import hashlib
from collections.abc import Collection
from typing import NamedTuple

from swarm_jax.core.ids import NO_ROUND, MicrobatchID, Round
from swarm_jax.core.ledger import Ledger, ledger_digest
from swarm_jax.core.reports import DRAINING, ONLINE, CommitRecord


class Position(NamedTuple):
    """Which parameters a peer has; what a stage peer needs beside them."""

    generation: int
    step: int
    lineage: str
    last_commit: CommitRecord | None


class StageState:
    """Step, lineage, ledger and promise of one peer (design, section 5).

    Args:
        staleness: By how many updates a step's gradients are behind: 1 with delayed
            updates, else 0.

    Attributes:
        generation: How often the run went back, to a checkpoint or to step 0.
        can_replay: Whether the device still has the parameters that the microbatches of
            the step before run with.
        promise: The newest round it has answered; older ones are refused.
        early: Ledger of the next step, whose microbatches may run before this one is
            committed if updates are delayed. The next commit makes it the ledger.
        settling, settling_early: Indices whose gradient the device is adding right now.
        changing: Whether device and ledger are being changed together (update, drop,
            new state): until that is over nothing may enter a sum.
        held: Whether the sum of this step must stay as it is; the early one need not.
        prepared: (step, name of the reduced gradient), if the device holds one.
    """

    def __init__(self, stage: int, staleness: int = 0):
        self.stage = stage
        self.staleness = staleness
        self.state = ONLINE
        self.generation = 0
        self.step = 0
        self.can_replay = False
        self.lineage = ""
        self.promise = NO_ROUND
        self.ledger = Ledger()
        self.early = Ledger()
        self.settling: set[int] = set()
        self.settling_early: set[int] = set()
        self.changing = False
        self.held = False
        self.prepared: tuple[int, str] | None = None
        self.last_commit: CommitRecord | None = None

    def promise_to(self, round_: Round) -> bool:
        """Promises to refuse what is older than ``round_``; False if it is older."""
        if round_ < self.promise:
            return False
        self.promise = round_
        return True

    def follows_newer(self, round_: Round) -> bool:
        """Whether a newer leader than that of ``round_`` has asked for anything."""
        return self.promise[:2] > round_[:2]

    def may_count(self, id_: MicrobatchID, round_: Round) -> bool:
        """Whether a gradient of this microbatch may enter the sum at this moment."""
        is_held = self.changing or (self.held and id_.step == self.step)
        return not is_held and self._is_wanted(id_, round_)

    def may_count_soon(self, id_: MicrobatchID, round_: Round) -> bool:
        """Whether only the change that goes on keeps it from being counted."""
        is_early = id_.step > self.step
        return self.changing and is_early and self._is_wanted(id_, round_)

    def _is_wanted(self, id_: MicrobatchID, round_: Round) -> bool:
        return (
            self.state in (ONLINE, DRAINING)
            and round_ >= self.promise
            and 0 <= id_.step - self.step <= self.staleness
            and not self.has_counted(id_)
        )

    def is_busy(self, id_: MicrobatchID) -> bool:
        """Whether this microbatch must wait for the end of a change."""
        return self.changing or (self.held and id_.step <= self.step)

    def age(self, id_: MicrobatchID, training: bool = True) -> int:
        """How many updates there were since the parameters that it runs with.

        Below 0 they are still to come. To train, those of ``staleness`` steps before
        the microbatch's own are taken.
        """
        return self.step - id_.step + (self.staleness if training else 0)

    def can_serve(
        self, id_: MicrobatchID, counted_by: Collection[int], training: bool = True
    ) -> bool:
        """Whether it has the parameters that this microbatch runs with.

        The oldest serve to pass on what other stages lack of the step before: that is
        committed here, so nothing more of it may be counted. Validation is of this
        step alone.
        """
        if not training:
            return id_.step == self.step
        is_kept = 0 <= self.age(id_, training) <= self.staleness + self.can_replay
        is_over = id_.step < self.step
        return is_kept and not (is_over and self.stage in counted_by)

    def has_counted(self, id_: MicrobatchID) -> bool:
        if id_.step > self.step:
            return id_.index in self.early or id_.index in self.settling_early
        return id_.index in self.ledger or id_.index in self.settling

    def ledger_digest(self) -> str:
        return ledger_digest(self.ledger.counted)

    def prepare(self, gradient: str) -> None:
        """Notes that the device holds the reduced gradient of this step.

        Args:
            gradient: A digest of its bytes; or, where no other peer has it, any name
                that is given once.
        """
        self.prepared = (self.step, gradient)

    def commit(self, gradient_norm: float | None) -> None:
        """Goes on to the next step; None for a step that is skipped.

        What was counted of it early is its ledger: those gradients are at the
        parameters before this commit, updated or not.
        """
        assert gradient_norm is None or self.can_commit
        assert not self.settling_early
        applied = "skipped" if gradient_norm is None else self.prepared[1]
        link = f"{self.lineage}/{self.step}/{applied}/{gradient_norm!r}"
        self.lineage = hashlib.sha256(link.encode()).hexdigest()[:32]
        self.last_commit = CommitRecord(self.step, gradient_norm)
        self.can_replay = gradient_norm is not None
        self.step += 1
        self.prepared = None
        self.ledger, self.early = self.early, Ledger()

    @property
    def can_commit(self) -> bool:
        return self.prepared is not None and self.prepared[0] == self.step

    def adopt(self, position: Position) -> None:
        """Takes a stage peer's place in the protocol, with its parameters."""
        self.generation, self.step, self.lineage, self.last_commit = position
        self.can_replay = False
        self.clear()

    def restart(self, generation: int) -> None:
        """Goes back to step 0, with the initial parameters."""
        self.adopt(Position(generation, 0, f"generation {generation}", None))

    @property
    def position(self) -> Position:
        return Position(self.generation, self.step, self.lineage, self.last_commit)

    def clear(self) -> None:
        """Forgets the gradient sums and the all-reduced gradient."""
        self.ledger.clear()
        self.early.clear()
        self.prepared = None
