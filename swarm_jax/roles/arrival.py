"""How long a peer takes to be of use in a stage, for its metrics."""

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from swarm_jax.core.reports import JOINING, ONLINE

T = TypeVar("T")

COMPILE, DOWNLOAD = "compile", "download"
"""Parts of getting ready; they overlap."""


class Parts(NamedTuple):
    """Attributes:
    compile_s: Until the programs of the stage were there.
    download_s: Until its state was; 0 for who fetched none.
    busy_s: In which either went on.
    """

    compile_s: float
    download_s: float
    busy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """The first part of a move to another stage.

    Attributes:
        began_s: When it was told to move, by the loop's clock.
        drain_s: Until a stage peer had taken over what it held.
        prepare_s: Until the new stage's programs were being compiled.
    """

    from_stage: int
    began_s: float
    drain_s: float
    prepare_s: float


class Arrival:
    """Times from JOINING to ONLINE to the first microbatch that is counted."""

    def __init__(self):
        self.migration: Migration | None = None
        self._joining_s: float | None = None
        self._online_s: float | None = None
        self._has_counted = False
        self._record: dict[str, Any] = {}
        self._spans_s: list[tuple[str, float, float]] = []

    async def timed(self, part: str, work: Awaitable[T]) -> T:
        """Waits for a part of getting ready, and notes from when to when it went on."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            return await work
        finally:
            self._spans_s.append((part, began_s, loop.time()))

    @property
    def parts(self) -> Parts:
        """Of what has been timed so far."""
        return Parts(
            *(
                _covered_s((a, b) for name, a, b in self._spans_s if name in names)
                for names in ({COMPILE}, {DOWNLOAD}, {COMPILE, DOWNLOAD})
            )
        )

    def entered(self, state: str) -> None:
        if self._has_counted:
            return
        now_s = asyncio.get_running_loop().time()
        if state == JOINING and self._joining_s is None:
            self._joining_s = now_s
        if state == ONLINE and self._joining_s is not None:
            self._online_s = now_s

    def counted(self) -> None:
        is_first, self._has_counted = not self._has_counted, True
        if not is_first or self._joining_s is None:
            return
        now_s = asyncio.get_running_loop().time()
        self._record = {
            "join_to_first_microbatch_s": now_s - self._joining_s,
            "join_compile_s": self.parts.compile_s,
            "join_download_s": self.parts.download_s,
        }
        if (migration := self.migration) is not None and self._online_s is not None:
            self._record |= {
                "migrated_from_stage": migration.from_stage,
                "migration_s": now_s - migration.began_s,
                "migration_drain_s": migration.drain_s,
                "migration_prepare_s": migration.prepare_s,
                "migration_state_s": self._online_s - self._joining_s,
                "migration_first_microbatch_s": now_s - self._online_s,
            }

    def take_record(self) -> dict[str, Any]:
        """What is known and was not taken before."""
        record, self._record = self._record, {}
        return record


def _covered_s(spans_s: Iterable[tuple[float, float]]) -> float:
    """Length of the union of some spans of time."""
    covered_s, until_s = 0.0, float("-inf")
    for began_s, ended_s in sorted(spans_s):
        covered_s += max(0.0, ended_s - max(began_s, until_s))
        until_s = max(until_s, ended_s)
    return covered_s
