"""Notices a peer that owes something and does not move: a slow-loris, a dead line."""

import asyncio
from collections.abc import Callable, Sequence

STALL_S = 30.0
MIN_PROGRESS_BYTES = 16 * 1024
"""In ``STALL_S``: 4 kbit/s. The slowest line that is worth having does a hundred times
that, and who holds our memory for less shall not."""

Owed = tuple[object, int]
"""What is owed (the same object for the same debt), and the bytes moved on its way."""


class Progress:
    """Looks every ``stall_s``; a debt that two looks see must have moved in between.

    A look that comes late proves nothing, for then it was us who stood still.

    Args:
        owed: What the peer owes at the moment.
        stalled: Called with the debt, once; no look follows.
        stall_s: Time for ``MIN_PROGRESS_BYTES``.
    """

    def __init__(
        self,
        owed: Callable[[], Sequence[Owed]],
        stalled: Callable[[object], None],
        stall_s: float,
    ):
        self._owed = owed
        self._stalled = stalled
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._seen: dict[object, int] = {}
        self._expect()

    def stop(self) -> None:
        self._timer.cancel()

    def _expect(self) -> None:
        self._due_s = self._loop.time() + self._stall_s
        self._timer = self._loop.call_at(self._due_s, self._look)

    def _look(self) -> None:
        late = self._loop.time() > self._due_s + self._stall_s / 2
        seen, self._seen = self._seen, dict(self._owed())
        for debt, moved in self._seen.items():
            if not late and debt in seen and moved - seen[debt] < MIN_PROGRESS_BYTES:
                self._stalled(debt)
                return
        self._expect()
