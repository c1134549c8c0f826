"""``Directory`` in a dict, on the event loop's clock."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack

from swarm_jax.net.local_wires import DIRECTORY, Wires
from swarm_jax.net.protocols import Record

HISTORY_S = 10.0
"""Directories lag by less."""


class Records:
    """What has been stored, with as much of the past as readers can still see.

    Attributes:
        lag_s: Readers see what was stored this long ago.
    """

    def __init__(self):
        self.lag_s = 0.0
        self._versions: dict[str, dict[str, list[tuple[float, Record]]]] = {}

    def store(self, key: str, subkey: str, record: Record, now_s: float) -> None:
        """A record never expires earlier than the one that it replaces."""
        versions = self._versions.setdefault(key, {}).setdefault(subkey, [])
        seen = [v for v in versions if v[0] <= now_s - HISTORY_S]
        del versions[: max(0, len(seen) - 1)]
        expires_at_s = max(
            [record.expires_at_s, *(r.expires_at_s for _, r in versions)]
        )
        versions.append((now_s, Record(record.value, expires_at_s)))

    def get(self, key: str, now_s: float) -> dict[str, Record]:
        found = {}
        for subkey, versions in self._versions.get(key, {}).items():
            for stored_s, record in versions:
                if stored_s <= now_s - self.lag_s:
                    found[subkey] = record
        return {sub: r for sub, r in found.items() if r.expires_at_s > now_s}


class LocalDirectory:
    """One peer's access. A peer that is cut off sees nothing and stores nothing."""

    def __init__(
        self,
        records: Records,
        wires: Wires,
        peer_id: str,
        is_gone: Callable[[str], bool],
    ):
        self._records = records
        self._wires = wires
        self._peer_id = peer_id
        self._is_gone = is_gone

    async def store(
        self, key: str, subkey: str, value: Any, *, expires_in_s: float
    ) -> bool:
        packed = msgpack.unpackb(msgpack.packb(value))
        if not await self._reaches():
            return False
        record = Record(packed, self.now_s() + expires_in_s)
        self._records.store(key, subkey, record, self.now_s())
        return True

    async def get(self, key: str) -> dict[str, Record]:
        if not await self._reaches():
            return {}
        return self._records.get(key, self.now_s())

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def _reaches(self) -> bool:
        await self._wires.awake(self._peer_id)
        link = self._peer_id, DIRECTORY
        cut = self._wires.is_broken(*link) or not self._wires.is_open(*link)
        return not cut and not self._is_gone(self._peer_id)
