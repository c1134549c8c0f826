"""Faults and schedules as data: what strikes whom, and when.

A schedule is a value: it can be printed as one line of JSON, kept in a test, made
shorter. What a fault does is in ``sim.sabotage``.
"""

from dataclasses import asdict, dataclass
from typing import Any

ONCE = ("crash", "crash_alone", "drain", "join", "move")
LASTING = ("refuse", "hang", "slow", "partition", "silence", "lag", "no_directory")
"""Kinds that go on for ``for_s``."""
MESSAGES = ("corrupt", "duplicate", "reorder", "lose_answer")
"""Kinds that strike one message: the next one that fits."""
KINDS = ONCE + LASTING + MESSAGES

TRAINER = "trainer"
"""As a fault's peer: the trainer that leads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        kind: One of ``KINDS``.
        peer: Whom it strikes: "stage1-0" (the peers of a stage are counted as they
            start), or ``TRAINER``. A join names the stage by any of its peers; a move
            goes to the stage after the peer's own.
        when: Kind and op of the event that it strikes at, as "answered prepare"; empty
            for none. "approaching relay" is a request that has been sent to a peer.
        where: The peer of that event, if it is another one than ``peer``.
        after: Events count only after this one, at the same place.
        nth: Strikes at the n-th such event.
        at_s: So long after the event, or after the start if there is none.
        for_s: How long it lasts; how much later a repeated or overtaken message comes.
        other: The other end of the links that it strikes; empty for all of them.
    """

    kind: str
    peer: str
    when: str = ""
    where: str = ""
    after: str = ""
    nth: int = 1
    at_s: float = 0.0
    for_s: float = 0.0
    other: str = ""

    def __post_init__(self):
        assert self.kind in KINDS, self.kind

    @property
    def place(self) -> str:
        return self.where or self.peer

    @property
    def stage(self) -> int:
        """Of the peer that it strikes."""
        return int(self.peer.removeprefix("stage").split("-")[0])

    def to_dict(self) -> dict[str, Any]:
        """Without what is as usual."""
        usual = Fault(kind=self.kind, peer=self.peer)
        return {
            name: value
            for name, value in asdict(self).items()
            if name in ("kind", "peer") or value != getattr(usual, name)
        }


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run: its shape and its faults.

    Attributes:
        tied_head: Whether the first and the last stage have a copy of one table each.
        delayed_updates: Whether a step's gradients are at the parameters before the
            last update.
    """

    peers_per_stage: tuple[int, ...]
    trainers: int
    faults: tuple[Fault, ...]
    tied_head: bool = False
    delayed_updates: bool = False

    @property
    def may_restart(self) -> bool:
        """Whether a stage's state may be lost, so that the run starts again."""
        return any(fault.kind == "crash_alone" for fault in self.faults)

    def to_dict(self) -> dict[str, Any]:
        return {
            "peers_per_stage": list(self.peers_per_stage),
            "trainers": self.trainers,
            "faults": [fault.to_dict() for fault in self.faults],
            **({"tied_head": True} if self.tied_head else {}),
            **({"delayed_updates": True} if self.delayed_updates else {}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Schedule":
        faults = tuple(Fault(**fault) for fault in values["faults"])
        kinds = {n: values.get(n, False) for n in ("tied_head", "delayed_updates")}
        peers = tuple(values["peers_per_stage"])
        return cls(peers, values["trainers"], faults, **kinds)
