"""What a stage server knows of its place in the step protocol: no tensors, no I/O."""

import hashlib
from collections.abc import Iterable

from swarm_jax.core.closing import ONLINE, CommitRecord
from swarm_jax.core.ids import NO_ROUND, MicrobatchID, Round
from swarm_jax.core.ledger import Ledger, ledger_digest


class StageState:
    """Step, lineage, ledger and promise of one peer (design, section 5).

    Attributes:
        promise: The newest round it has answered; older ones are refused.
        settling: Indices whose gradient the device is adding right now.
        changing: Whether device and ledger are being changed together (update, drop,
            new state): until that is over nothing may enter the sum.
        prepared: (step, digest of the all-reduced gradient), if it holds one.
    """

    def __init__(self, stage: int):
        self.stage = stage
        self.state = ONLINE
        self.step = 0
        self.lineage = ""
        self.promise = NO_ROUND
        self.ledger = Ledger()
        self.settling: set[int] = set()
        self.changing = False
        self.prepared: tuple[int, str] | None = None
        self.last_commit: CommitRecord | None = None

    def promise_to(self, round_: Round) -> bool:
        """Promises to refuse what is older than ``round_``; False if it is older."""
        if round_ < self.promise:
            return False
        self.promise = round_
        return True

    def may_count(self, id_: MicrobatchID, round_: Round) -> bool:
        """Whether a gradient of this microbatch may enter the sum at this moment."""
        return (
            self.state == ONLINE
            and not self.changing
            and round_ >= self.promise
            and id_.step == self.step
            and not self.has_counted(id_)
        )

    def has_counted(self, id_: MicrobatchID) -> bool:
        return id_.index in self.ledger or id_.index in self.settling

    def ledger_digest(self) -> str:
        return ledger_digest(self.ledger.counted)

    def prepare(self, gradients: Iterable[bytes | memoryview]) -> None:
        """Notes that the device holds the all-reduced gradient of this step."""
        digest = hashlib.sha256()
        for gradient in gradients:
            digest.update(gradient)
        self.prepared = (self.step, digest.hexdigest())

    def commit(self, gradient_norm: float | None) -> None:
        """Goes on to the next step; None for a step that is skipped."""
        assert gradient_norm is None or self.can_commit
        applied = "skipped" if gradient_norm is None else self.prepared[1]
        link = f"{self.lineage}/{self.step}/{applied}/{gradient_norm!r}"
        self.lineage = hashlib.sha256(link.encode()).hexdigest()[:32]
        self.last_commit = CommitRecord(self.step, gradient_norm)
        self.step += 1
        self.clear()

    @property
    def can_commit(self) -> bool:
        return self.prepared is not None and self.prepared[0] == self.step

    def adopt(self, step: int, lineage: str, last_commit: CommitRecord | None) -> None:
        """Takes a stage peer's place in the protocol, with its parameters."""
        self.step, self.lineage, self.last_commit = step, lineage, last_commit
        self.clear()

    def clear(self) -> None:
        """Forgets the gradient sum and the all-reduced gradient."""
        self.ledger.clear()
        self.prepared = None
