"""The fault matrix as data: every fault, in every phase of the protocol, at every role.

A cell is a schedule: what brings the swarm into the phase, and one fault that strikes
there. Cells that cannot exist are left out by a rule, which says why.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from swarm_jax.sim.chaos import LATENCY_S
from swarm_jax.sim.faults import TRAINER, Fault, Schedule

HANG_S = 4.0
"""Longer than three heartbeats."""

FAULTS = {
    "refuse": Fault(kind="refuse", peer="", for_s=1.0),
    "crash": Fault(kind="crash", peer=""),
    "crash of the only one": Fault(kind="crash_alone", peer="", for_s=3.0),
    "hang": Fault(kind="hang", peer="", for_s=HANG_S),
    "slow": Fault(kind="slow", peer="", for_s=2.0),
    "corrupt": Fault(kind="corrupt", peer=""),
    "duplicate": Fault(kind="duplicate", peer=""),
    "reorder": Fault(kind="reorder", peer="", for_s=0.5),
    "partition, loud": Fault(kind="partition", peer="", for_s=HANG_S),
    "partition, silent": Fault(kind="silence", peer="", for_s=HANG_S),
}
"""A spare peer stays after a crash; after that of the only one, the run starts again.
Corrupt, duplicate and reorder strike one message."""


@dataclass(frozen=True, slots=True)
class Phase:
    """When a fault strikes.

    Attributes:
        event: At a stage peer.
        event_alone: The same at a peer that closes steps alone, if it is another.
        trainer_event: At the trainer, or at the peer of stage 0 if ``at_stage_0``;
            empty if a trainer is never in this phase.
        nth: Which of these events.
        at_s: So long after it.
        after: Events count only after this one.
        begins: "join", "drain" or "move": what must go on.
    """

    event: str
    trainer_event: str = ""
    at_stage_0: bool = False
    nth: int = 2
    at_s: float = 0.0
    after: str = ""
    begins: str = ""
    event_alone: str = ""


PHASES = {
    "before accept": Phase("request_arrived relay", "request_sent relay", nth=6),
    "mid-stream, request": Phase(
        "approaching relay", "request_sent relay", nth=6, at_s=LATENCY_S / 2
    ),
    "mid-stream, answer": Phase(
        "answered relay", "answered relay", True, nth=6, at_s=LATENCY_S / 2
    ),
    "before compute": Phase("device_started backward", nth=6),
    "after compute before answer": Phase("answered relay", nth=6),
    "after count before answer": Phase(
        "device_done backward", "device_done backward", True, nth=6
    ),
    "while collecting": Phase("request_arrived collect", "request_sent collect", nth=5),
    "mid-all-reduce": Phase(
        "allreduce_joined allreduce",
        "allreduce_joined allreduce",
        True,
        event_alone="device_started reduce_alone",
    ),
    "between prepare and commit": Phase("answered prepare", "request_sent commit"),
    "mid-join as joiner": Phase("request_sent chunk", nth=1, begins="join"),
    "mid-join as donor": Phase("request_arrived chunk", nth=1, begins="join"),
    "while saving": Phase("request_arrived save", "request_sent save", nth=1),
    "between save and complete": Phase("answered save", "request_sent complete", nth=1),
    "while draining": Phase(
        "request_sent hand_over", "request_sent hand_over", True, nth=1, begins="drain"
    ),
    "while moving, in the old stage": Phase(
        "request_sent hand_over", nth=1, begins="move"
    ),
    "while moving, before the state": Phase(
        "request_sent manifest", nth=1, begins="move"
    ),
    "while moving, mid-state": Phase("answer_arrived chunk", nth=1, begins="move"),
    "while moving, before it computes": Phase(
        "request_arrived relay", after="answer_arrived chunk", nth=1, begins="move"
    ),
}

ROLES = {"first": 0, "middle": 1, "last": 2, "trainer": -1, "donor": 1}
"""A donor is a peer of the middle stage while another one fetches its state."""

Rule = tuple[Callable[[str, str, str], bool], str]

EXCLUDED: tuple[Rule, ...] = (
    (
        lambda fault, phase, role: (
            role == "trainer" and not PHASES[phase].trainer_event
        ),
        "a trainer has no device, and no state to fetch or to give",
    ),
    (
        lambda fault, phase, role: role == "donor" and phase == "mid-join as joiner",
        "a donor has its state already",
    ),
    (
        lambda fault, phase, role: role == "middle" and phase == "mid-join as donor",
        "the donor is of the middle stage: it is the same cell",
    ),
    (
        lambda fault, phase, role: role == "donor" and "save" in PHASES[phase].event,
        "a donor saves as any peer of the middle stage: it is the same cell",
    ),
    (
        lambda fault, phase, role: role == "donor" and PHASES[phase].begins == "move",
        "who moves gives its state to nobody",
    ),
    (
        lambda fault, phase, role: (
            fault == "crash of the only one" and PHASES[phase].begins == "move"
        ),
        "the only peer of a stage does not move",
    ),
    (
        lambda fault, phase, role: (
            fault == "crash of the only one" and phase == "mid-join as joiner"
        ),
        "a joiner with a donor is not the only one",
    ),
    (
        lambda fault, phase, role: (
            fault == "crash of the only one"
            and phase == "while draining"
            and role != "trainer"
        ),
        "the only peer of a stage has nobody to hand over to, and stays",
    ),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the matrix.

    Attributes:
        excluded: Why it cannot exist; empty if it can.
    """

    fault: str
    phase: str
    role: str
    excluded: str

    @property
    def name(self) -> str:
        return f"{self.fault} | {self.phase} | {self.role}"


def cells() -> Iterator[Cell]:
    """All of them, those that cannot exist too."""
    for fault in FAULTS:
        for phase in PHASES:
            for role in ROLES:
                place = fault, phase, role
                reasons = (why for applies, why in EXCLUDED if applies(*place))
                yield Cell(*place, next(reasons, ""))


def schedule_of(cell: Cell, *, tied_head: bool = False) -> Schedule:
    """The cell's run. Its last fault is the cell's own; the others lead there."""
    phase, stage = PHASES[cell.phase], ROLES[cell.role]
    is_trainer, is_joiner = cell.role == "trainer", cell.phase == "mid-join as joiner"
    alone = cell.fault == "crash of the only one"
    counts = [1 if alone and s == stage else 2 for s in range(3)]
    peer = TRAINER if is_trainer else f"stage{stage}-{2 if is_joiner else 0}"
    where = "stage0-0" if is_trainer and phase.at_stage_0 else ""
    gives = cell.role == "donor" and phase.begins != "join"
    reduces_alone = alone and not gives and not (tied_head and stage in (0, 2))
    event = phase.event_alone if reduces_alone and phase.event_alone else phase.event
    strike = replace(
        FAULTS[cell.fault],
        peer=peer,
        when=phase.trainer_event if is_trainer else event,
        where=where,
        after="request_arrived manifest" if gives else phase.after,
        nth=1 if gives else phase.nth,
        at_s=phase.at_s,
    )
    leads_there = list(_begin(phase, where or peer, gives, counts))
    trainers = 1 if alone else 2
    return Schedule(tuple(counts), trainers, (*leads_there, strike), tied_head)


def _begin(phase: Phase, peer: str, gives: bool, counts: list[int]) -> Iterator[Fault]:
    """What must go on when the fault strikes: a join, a drain or both."""
    if gives or phase.begins == "join":
        stage = peer.split("-")[0]
        joiner = f"{stage}-{counts[int(stage[-1])]}"
        first_commit = {"when": "answered commit", "where": f"{stage}-0"}
        yield Fault(kind="join", peer=joiner, **first_commit)
        if gives:
            yield Fault(
                kind="slow", peer=joiner, when="request_sent manifest", for_s=2.0
            )
    if phase.begins == "move":
        yield Fault(kind="move", peer=peer, when="answered relay", nth=6)
    if phase.begins == "drain":
        after = "request_arrived manifest" if gives else ""
        nth = 1 if gives else 6
        when = "device_done backward"
        yield Fault(kind="drain", peer=peer, when=when, after=after, nth=nth)
