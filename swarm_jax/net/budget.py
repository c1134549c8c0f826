"""One budget for the bytes of all messages that peers make this process hold.

A message takes its bytes when its head has come, before anything is allocated, and
gives them back when it is gone: a request with its handler, an answer when it is sent.
"""

SMALL_BYTES = 64 * 1024
MIN_BUDGET_BYTES = 256 * 1024 * 1024
RESERVE_SHARE = 8
"""One eighth on top of the budget is kept for small messages: the leader must reach a
peer that others keep full."""


class Room:
    """Bytes that one message takes; given back once, whoever comes first."""

    def __init__(self, budget: "Budget", peer: str, size: int):
        self._budget = budget
        self._peer = peer
        self._size = size

    def release(self) -> None:
        size, self._size = self._size, 0
        self._budget._give_back(self._peer, size)


class Budget:
    """Bytes in use, and who uses them.

    A peer may use as much as it finds free: one alone gets about half of the budget,
    two get a third each, and so on. So nobody can take all, the next one always finds
    something, and nobody has to be known in advance.

    Args:
        total_bytes: All messages together.
    """

    def __init__(self, total_bytes: int):
        self.used_bytes = 0
        self._total_bytes = total_bytes
        self._by_peer: dict[str, int] = {}

    def request(self, peer: str, size: int) -> Room | None:
        """Room for what a peer sends of its own accord; None when it finds none.

        A peer that uses nothing may send one message of half the budget even when
        there is just as much left.
        """
        free = self._limit(size) - self.used_bytes
        used = self._by_peer.get(peer, 0)
        return self._take(peer, size) if used + size <= free else None

    def answer(self, peer: str, size: int) -> Room | None:
        """Room for what we asked for, which needs no fairness."""
        free = self._limit(size) - self.used_bytes
        return self._take(peer, size) if size <= free else None

    @classmethod
    def for_messages(cls, max_message_bytes: int) -> "Budget":
        """The default: a lone peer may always send the largest message."""
        return cls(max(2 * max_message_bytes, MIN_BUDGET_BYTES))

    def _limit(self, size: int) -> int:
        reserve = self._total_bytes // RESERVE_SHARE
        return self._total_bytes + (reserve if size <= SMALL_BYTES else 0)

    def _take(self, peer: str, size: int) -> Room:
        self.used_bytes += size
        self._by_peer[peer] = self._by_peer.get(peer, 0) + size
        return Room(self, peer, size)

    def _give_back(self, peer: str, size: int) -> None:
        if not size:
            return
        self.used_bytes -= size
        self._by_peer[peer] -= size
        if not self._by_peer[peer]:
            del self._by_peer[peer]
