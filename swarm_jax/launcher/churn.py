"""Who of a swarm gets which fault, and when: a seeded plan, without doing any of it.

The same seed and the same views of the swarm give the same faults. What is ONLINE
differs from run to run, so a seed fixes the kinds and the pauses only as far as the
machine lets the run repeat itself.
"""

import enum
import random
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

QUIET_END_S = 15.0
"""No fault in the last seconds: what was broken has the time to recover."""

FAULT_FREE_S = 15.0
"""Before the first fault: the speed that the run is measured against."""

STOP_S = (2.0, 6.0)
"""Shortest and longest SIGSTOP: less and more than three heartbeats."""

PAUSE_S = (1.0, 4.0)
"""Shortest and longest time until a dead process is replaced."""


class Kind(enum.StrEnum):
    """What is done to a process."""

    KILL = "SIGKILL"
    STOP = "SIGSTOP"
    LEAVE = "SIGTERM"
    KILL_STAGE = "SIGKILL of a whole stage"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChurnSettings:
    """What ``--kill-every`` and its companions ask for.

    Attributes:
        every_s: Time between two faults.
        seed: Of kinds, victims and pauses.
        kill_whole_stage: A stage's last ONLINE peer may be taken too, and once, in the
            middle of the run, all servers of a stage are killed together.
        fault_free_s, quiet_end_s: No fault in the first and in the last seconds.
    """

    every_s: float
    seed: int
    kill_whole_stage: bool = False
    fault_free_s: float = FAULT_FREE_S
    quiet_end_s: float = QUIET_END_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One fault.

    Attributes:
        target: Name of the process; of ``KILL_STAGE``, None.
        stage: The target's; None for a trainer.
        pause_s: How long a stopped process stays so, or a dead one unreplaced.
    """

    kind: Kind
    target: str | None
    stage: int | None
    pause_s: float


class Churn:
    """Decides on the next fault; asked again and again with the swarm as it is.

    Args:
        settings: What was asked for.
        duration_s: Of the run; times count from its beginning.
    """

    def __init__(self, settings: ChurnSettings, duration_s: float):
        self._settings = settings
        self._random = random.Random(settings.seed)
        self._due_s = settings.fault_free_s
        self._end_s = duration_s - settings.quiet_end_s
        middle_s = (settings.fault_free_s + self._end_s) / 2
        self._kill_stage_s = middle_s if settings.kill_whole_stage else float("inf")

    def next_action(
        self,
        now_s: float,
        online: Mapping[int, Sequence[str]],
        leader: str | None,
    ) -> Action | None:
        """The fault of now. None: it is too early, too late, or nobody may be taken.

        Args:
            online: Names of the servers by stage that do their work (`serving`).
            leader: Name of the leading trainer, if another stands by.
        """
        if now_s < self._due_s or now_s > self._end_s:
            return None
        while self._due_s <= now_s:
            self._due_s += self._settings.every_s
        if now_s >= self._kill_stage_s and online:
            self._kill_stage_s = float("inf")
            return self._action(Kind.KILL_STAGE, None, self._choose(sorted(online)))
        if not (groups := self._groups(online, leader)):
            return None
        stage, names = self._choose(groups)
        # A server that leaves hands over to a stage peer, so there must be one.
        spare = stage is None or len(names) > 1
        kinds = (Kind.KILL, Kind.STOP, Kind.LEAVE) if spare else (Kind.KILL, Kind.STOP)
        return self._action(self._choose(kinds), self._choose(sorted(names)), stage)

    def pause_s(self) -> float:
        """How long a process that died of itself is not replaced."""
        return self._random.uniform(*PAUSE_S)

    def _groups(
        self, online: Mapping[int, Sequence[str]], leader: str | None
    ) -> list[tuple[int | None, Sequence[str]]]:
        """Stages that may lose a server; None: the trainers, that may lose a leader."""
        least = 1 if self._settings.kill_whole_stage else 2
        groups: list[tuple[int | None, Sequence[str]]] = [
            (stage, names)
            for stage, names in sorted(online.items())
            if len(names) >= least
        ]
        return groups if leader is None else [*groups, (None, [leader])]

    def _action(self, kind: Kind, target: str | None, stage: int | None) -> Action:
        limits_s = STOP_S if kind == Kind.STOP else PAUSE_S
        pause_s = self._random.uniform(*limits_s)
        return Action(kind=kind, target=target, stage=stage, pause_s=pause_s)

    def _choose(self, options: Sequence[Any]) -> Any:
        return options[self._random.randrange(len(options))]


def serving(
    stages: Sequence[Mapping[str, Any]], running: Container[str]
) -> dict[int, list[str]]:
    """Names of the servers by stage that are ONLINE and run.

    The directory keeps the record of a dead or frozen peer for seconds, so it alone
    does not say who could carry on.

    Args:
        stages: Of a record of ``swarm.jsonl``.
        running: Names of the processes that neither ended nor are about to.
    """
    return {
        stage["stage"]: [
            peer["name"]
            for peer in stage["peers"]
            if peer["state"] == "ONLINE" and peer["name"] in running
        ]
        for stage in stages
    }
