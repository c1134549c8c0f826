"""Requests between peers, checked field by field when they arrive.

On the wire a request is a msgpack header ``{"op", "swarm", fields...}``; a reply is
``{"status", fields...}``. A header of the wrong form is the sender's fault.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, get_args

from swarm_jax.core.ids import NO_ROUND, MicrobatchID, Round
from swarm_jax.core.reports import CommitRecord, Report
from swarm_jax.net.protocols import Message


class Status(StrEnum):
    """How a request ended."""

    OK = "ok"
    BUSY = "busy"
    """Back-pressure: try another peer, no fault."""
    NOT_ONLINE = "not_online"
    WRONG_SWARM = "wrong_swarm"
    WRONG_STAGE = "wrong_stage"
    WRONG_STEP = "wrong_step"
    OLD_ROUND = "old_round"
    """The peer has promised itself to a newer round, which the reply names."""
    NO_ROUTE = "no_route"
    """The peer finds no peer of a deeper stage; its own fault it is not."""
    NONFINITE = "nonfinite"
    """This peer got non-finite values; another one may not."""
    DIVERGED = "diverged"
    """Independent peers of one stage got non-finite values: it is the model."""
    DIFFERENT_LEDGER = "different_ledger"
    VOID = "void"
    """The all-reduce did not complete; the reply names whom this peer lacked."""
    NOT_PREPARED = "not_prepared"
    UNKNOWN_STATE = "unknown_state"
    """The state that is asked for is not kept, or no longer."""
    NOT_SAVED = "not_saved"
    """The state could not be written; the peer's log says why."""


WATCH_S = 30.0
"""The longest that a peer takes to answer ``Watch``."""


class MalformedHeader(ValueError):
    """A header lacks a field, or has one of the wrong type or range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """Run a microbatch through this stage and all deeper ones.

    Arrays: int32 targets [B, L], then the stage's encoded input.

    Attributes:
        round: The leader's, or the sender's copy of it; ``NO_ROUND`` of a guest, who
            leads nothing and only runs forward.
        generation: Of the run that the microbatch belongs to.
        stage: Stage of the receiver.
        counted_by: Stages that lack the microbatch and so count it.
        training: False for validation: forward only, nothing is counted.
        avoid: Peers that no microbatch of this round goes to.
        budget_s: Seconds that the sender waits at most.
    """

    op: ClassVar[str] = "relay"
    round: Round
    generation: int
    stage: int
    id: MicrobatchID
    counted_by: frozenset[int]
    training: bool
    avoid: frozenset[str]
    budget_s: float

    @property
    def is_guest(self) -> bool:
        return self.round == NO_ROUND and not self.training


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """Report where you are, and refuse older rounds from now on."""

    op: ClassVar[str] = "collect"
    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Answer later: until then, your heartbeats say that you are there.

    Attributes:
        for_s: After how long; at most ``WATCH_S``.
    """

    op: ClassVar[str] = "watch"
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Locate:
    """Say which parameters you serve: the reply has ``generation`` and ``step``."""

    op: ClassVar[str] = "locate"


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSum:
    """Forget your gradient sum of this step.

    Attributes:
        generation: Of the run that the step belongs to.
    """

    op: ClassVar[str] = "drop"
    round: Round
    generation: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """All-reduce your gradient sum inside ``group``, into a buffer.

    Attributes:
        generation: Of the run that the step belongs to.
        group: Peers of the stage that take part, each with the digest of its ledger.
        tied: Peers of the first and the last stage that reduce the gradient of the
            table that both have a copy of; none in other stages.
        donors: Of the other of these two stages, which has committed the step: they
            give that gradient, since it cannot be reduced again.
        loss_tokens: Loss tokens of the whole step, which the gradient is divided by.
    """

    op: ClassVar[str] = "prepare"
    round: Round
    generation: int
    step: int
    group: dict[str, str]
    tied: frozenset[str]
    donors: list[str]
    loss_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Apply the prepared gradient and go on to the next step.

    Attributes:
        generation: Of the run that the step belongs to.
        gradient_norm: Over all stages; None to skip the step without an update.
    """

    op: ClassVar[str] = "commit"
    round: Round
    generation: int
    step: int
    gradient_norm: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResyncState:
    """You are stale: fetch your stage's state from a stage peer."""

    op: ClassVar[str] = "resync"
    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartRun:
    """Go back to ``step``, if your generation is older.

    Attributes:
        step: Of a checkpoint; 0 for the initial parameters.
    """

    op: ClassVar[str] = "restart"
    round: Round
    generation: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveTo:
    """Leave your stage, and serve ``stage``.

    Attributes:
        reason: For people.
    """

    op: ClassVar[str] = "move"
    round: Round
    stage: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveState:
    """Save your state as it is before ``step``; answer when it is written."""

    op: ClassVar[str] = "save"
    round: Round
    generation: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteSave:
    """All stages have saved ``step``: from now on it may be restored.

    Attributes:
        digests: Of what the stages saved, in their order.
        summary: The run's figures at that step.
    """

    op: ClassVar[str] = "complete"
    round: Round
    generation: int
    step: int
    digests: list[str]
    summary: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchManifest:
    """Say what your state is made of: hashes of its chunks.

    Attributes:
        stage: Stage of the receiver, as the asking peer believes.
    """

    op: ClassVar[str] = "manifest"
    stage: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchChunk:
    """Send one chunk of the state whose manifest you gave.

    Attributes:
        digest: Of that manifest.
    """

    op: ClassVar[str] = "chunk"
    stage: int
    digest: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchTied:
    """Send the tied gradient of a step that you have just committed.

    The answer's array: the gradient that both copies of the table were updated with.

    Attributes:
        generation: Of the run that the step belongs to.
    """

    op: ClassVar[str] = "tied"
    generation: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """Add my gradient sum and ledger to yours: I am leaving.

    Arrays: the gradient sum, leaf by leaf; none when its ledger is empty.

    Attributes:
        round: The promise of the sender: both must have answered the same round.
        losses: The sender's ledger.
    """

    op: ClassVar[str] = "hand_over"
    round: Round
    generation: int
    stage: int
    step: int
    lineage: str
    losses: dict[int, float]


Request = (
    Relay
    | Collect
    | DropSum
    | Prepare
    | Commit
    | ResyncState
    | RestartRun
    | MoveTo
    | SaveState
    | CompleteSave
    | Watch
    | Locate
    | FetchManifest
    | FetchChunk
    | FetchTied
    | HandOver
)
_KINDS = {kind.op: kind for kind in get_args(Request)}


def to_header(request: Request, swarm: str) -> dict[str, Any]:
    """Header of a request; ``swarm`` is the fingerprint of the sender's swarm."""
    fields = {
        entry.name: _plain(getattr(request, entry.name))
        for entry in dataclasses.fields(request)
    }
    return {"op": request.op, "swarm": swarm} | fields


def from_header(header: Mapping[str, Any]) -> Request:
    """Reads and checks a request.

    Raises:
        MalformedHeader: It is none.
    """
    kind = _KINDS.get(header.get("op")) if isinstance(header.get("op"), str) else None
    if kind is None:
        raise MalformedHeader(f"unknown operation {reprlib.repr(header.get('op')):.40}")
    return kind(
        **{
            entry.name: read(header, entry.name, entry.type)
            for entry in dataclasses.fields(kind)
        }
    )


def read(header: Mapping[str, Any], name: str, type_: str) -> Any:
    """Reads one field as the type that its annotation names."""
    try:
        return _READERS[type_](header[name])
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        shown = f"{reprlib.repr(header.get(name)):.60}"
        raise MalformedHeader(f"field {name!r} is {shown}, not {type_}") from error


def refusal(status: Status, **fields: Any) -> Message:
    """A reply that is only a status and what explains it."""
    return Message({"status": status} | fields)


def report_to_header(report: Report) -> dict[str, Any]:
    """A report as the reply to ``collect``."""
    commit = report.last_commit
    return {
        "status": Status.OK,
        "stage": report.stage,
        "state": report.state,
        "step": report.step,
        "lineage": report.lineage,
        "generation": report.generation,
        "counted": sorted(report.counted),
        "early": sorted(report.early),
        "prepared_step": report.prepared_step,
        "can_replay": report.can_replay,
        "last_commit": commit and [commit.step, commit.gradient_norm],
        "losses": sorted(report.losses.items()) if report.losses is not None else None,
        "saved": sorted(report.saved),
        "folder": report.folder,
        "newest_heard": list(report.newest_heard),
    }


def report_from_header(peer: str, header: Mapping[str, Any]) -> Report:
    """Reads a reply to ``collect``.

    Raises:
        MalformedHeader: It is none.
    """
    types = {
        "stage": "int",
        "state": "str",
        "step": "int",
        "lineage": "str",
        "generation": "int",
        "counted": "frozenset[int]",
        "early": "frozenset[int]",
        "prepared_step": "int | None",
        "can_replay": "bool",
        "last_commit": "CommitRecord | None",
        "losses": "dict[int, float] | None",
        "saved": "frozenset[int]",
        "folder": "str",
        "newest_heard": "tuple[int, int]",
    }
    fields = {name: read(header, name, type_) for name, type_ in types.items()}
    return Report(peer=peer, **fields)


def commit_from_header(header: Mapping[str, Any]) -> CommitRecord | None:
    return read(header, "last_commit", "CommitRecord | None")


def _plain(value: Any) -> Any:
    if isinstance(value, (frozenset, set)):
        return sorted(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict) and any(type(key) is not str for key in value):
        return sorted(value.items())
    return value


def _int(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError
    return value


def _float(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError
    return float(value)


def _positive(value: Any) -> float:
    number = _float(value)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


def _str(value: Any) -> str:
    if type(value) is not str or len(value) > 256:
        raise ValueError
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError
    return value


def _optional(reader: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else reader(value)


def _round(value: Any) -> Round:
    number, trainer, pass_ = value
    return Round(_int(number), _str(trainer), _int(pass_))


def _names(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError
    return {_str(key): _str(name) for key, name in value.items()}


def _figures(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise TypeError
    return {_str(key): _float(number) for key, number in value.items()}


def _position(value: Any) -> tuple[int, int]:
    generation, step = value
    return _int(generation), _int(step)


def _losses(value: Any) -> dict[int, float]:
    return {_int(index): _float(loss) for index, loss in value}


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": _int,
    "float": _positive,
    "str": _str,
    "bool": _bool,
    "Round": _round,
    "tuple[int, int]": _position,
    "MicrobatchID": lambda value: MicrobatchID(*(_int(part) for part in value)),
    "frozenset[int]": lambda value: frozenset(_int(item) for item in value),
    "frozenset[str]": lambda value: frozenset(_str(item) for item in value),
    "dict[str, str]": _names,
    "dict[str, float]": _figures,
    "float | None": _optional(_positive),
    "int | None": _optional(_int),
    "CommitRecord | None": _optional(
        lambda value: CommitRecord(_int(value[0]), _optional(_positive)(value[1]))
    ),
    "dict[int, float]": _losses,
    "dict[int, float] | None": _optional(_losses),
    "list[str]": lambda value: [_str(item) for item in value],
}
