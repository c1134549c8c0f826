"""Who is not listened to for a while: bans that double, and end by themselves."""

MAX_REMEMBERED = 4096


class Bans:
    """Bans of peers that sent something malformed, or did not do what they should.

    A peer that keeps quiet after its ban, for as long as the longest ban, starts anew:
    a machine that was mended is not held to its past.

    Args:
        ban_s: Length of a first ban; the next ones are twice as long as the one before.
        max_ban_s: Longest ban.
    """

    def __init__(self, ban_s: float = 1.0, max_ban_s: float = 30.0):
        self._ban_s = ban_s
        self._max_ban_s = max_ban_s
        self._bans: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._bans)

    def ban(self, peer: str, now_s: float) -> float:
        """Bans a peer; returns for how many seconds from now.

        What it did while it was banned already was on its way before: one offence.
        """
        until_s, length_s = self._bans.pop(peer, (-self._max_ban_s, 0.0))
        if until_s <= now_s:
            forgotten = until_s + self._max_ban_s <= now_s or not length_s
            length_s = self._ban_s if forgotten else 2 * length_s
            length_s = min(length_s, self._max_ban_s)
            until_s = now_s + length_s
        self._bans[peer] = until_s, length_s
        if len(self._bans) > MAX_REMEMBERED:
            self._forget_one()
        return until_s - now_s

    def left_s(self, peer: str, now_s: float) -> float:
        """For how many seconds the peer is still banned; 0 when it is not."""
        until_s, _ = self._bans.get(peer, (now_s, 0.0))
        return max(0.0, until_s - now_s)

    def _forget_one(self) -> None:
        """Drops the ban that ends first: identities are free, our memory is not."""
        del self._bans[min(self._bans, key=lambda peer: self._bans[peer][0])]
