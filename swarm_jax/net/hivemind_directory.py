"""``Directory`` over hivemind's DHT: one dictionary per key, one entry per subkey."""

from typing import Any

from hivemind.utils import get_dht_time

from swarm_jax.net.hivemind_node import HivemindNode
from swarm_jax.net.hivemind_records import entries_of
from swarm_jax.net.protocols import Record

FORWARD_S = 1e-3


class HivemindDirectory:
    """Records of this peer and of others.

    Args:
        node: The started node; it is not closed with this object.
    """

    def __init__(self, node: HivemindNode):
        self._node = node
        self._expires_at_s: dict[tuple[str, str], float] = {}

    async def store(
        self, key: str, subkey: str, value: Any, *, expires_in_s: float
    ) -> bool:
        """As ``Directory.store``.

        Nodes keep the record that expires last, so each one of ours expires after the
        one before, even when a shorter life was asked for.
        """
        expires_at_s = max(
            self.now_s() + expires_in_s,
            self._expires_at_s.get((key, subkey), 0.0) + FORWARD_S,
        )
        self._expires_at_s[key, subkey] = expires_at_s
        return await self._node.dht.store(key, value, expires_at_s, subkey=subkey)

    async def get(self, key: str) -> dict[str, Record]:
        now_s = self.now_s()
        return {
            subkey: Record(entry.value, entry.expiration_time)
            for subkey, entry in entries_of(await self._node.dht.get(key, latest=True))
            if entry.expiration_time > now_s
        }

    def now_s(self) -> float:
        return get_dht_time()
