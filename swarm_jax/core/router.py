"""Which peer of the next stage gets a microbatch.

Interleaved weighted round-robin (SWARM, section 3.1): each peer has a virtual finish
time, the earliest is taken and moves on by the seconds that its measured throughput
says the work will take.

A peer that fails is banned, each time for longer. When the ban is over it gets one
microbatch, and the next only after it has answered; and the more often it has failed
lately, the less it gets.
"""

import heapq
import itertools
from collections.abc import Collection
from dataclasses import dataclass, field

from swarm_jax.core.throughput import MeanRate, ThroughputAverage

MAX_DOUBLINGS = 30
LEAST_RELIABILITY = 1 / 32
LEAST_SPEED = 1 / 16
"""Of the mean; whoever is thought slower would hardly be measured again."""
RELIABILITY_SMOOTHING = 0.1


@dataclass(slots=True)
class _Peer:
    finish_s: float
    turn: int
    throughput: ThroughputAverage = field(default_factory=ThroughputAverage)
    failures: int = 0
    reliability: float = 1.0
    banned_until_s: float = 0.0
    paused_until_s: float = 0.0
    probed_until_s: float = 0.0

    @property
    def unusable_until_s(self) -> float:
        return max(self.banned_until_s, self.paused_until_s, self.probed_until_s)


class Router:
    """Routes one sender's microbatches over the peers of one stage.

    Args:
        ban_s: Length of a peer's first ban; it doubles with each failure in a row.
        max_ban_s: Longest ban.
    """

    def __init__(self, ban_s: float, max_ban_s: float):
        self._ban_s = ban_s
        self._max_ban_s = max_ban_s
        self._peers: dict[str, _Peer] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._turns = itertools.count()
        self._virtual_now_s = 0.0
        self._known = MeanRate()

    def update(self, peers: Collection[str]) -> None:
        """Takes in the stage's present peers; new ones enter at the head."""
        for gone in self._peers.keys() - set(peers):
            self._known.discard(self._peers.pop(gone).throughput)
        for peer in sorted(set(peers) - self._peers.keys()):
            self._peers[peer] = _Peer(self._virtual_now_s, next(self._turns))
            self._push(peer)

    def pick(
        self, tokens: int, now_s: float, exclude: Collection[str] = ()
    ) -> str | None:
        """The peer to send ``tokens`` tokens to, or None when none may be used now."""
        passed_over = []
        chosen = None
        while self._heap and chosen is None:
            finish_s, turn, peer = heapq.heappop(self._heap)
            entry = self._peers.get(peer)
            if entry is None or entry.turn != turn:
                continue
            if peer in exclude or entry.unusable_until_s > now_s:
                passed_over.append(peer)
            else:
                chosen = peer
                self._virtual_now_s = max(self._virtual_now_s, finish_s)
        for peer in passed_over:
            self._push(peer)
        if chosen is not None:
            entry = self._peers[chosen]
            entry.finish_s = self._virtual_now_s + self._cost_s(entry, tokens)
            entry.turn = next(self._turns)
            if entry.failures:
                entry.probed_until_s = now_s + self._ban_length_s(entry)
            self._push(chosen)
        return chosen

    def succeeded(self, peer: str, tokens: int, seconds: float) -> None:
        """Learns from an answer; it ends the peer's row of failures.

        An answer slower than ``LEAST_SPEED`` of the mean (the peer compiled) counts as
        that slow: the real figure would outweigh all others for hundreds of answers,
        for which the peer would not be asked.
        """
        if entry := self._peers.get(peer):
            self._known.discard(entry.throughput)
            if mean := self._known.mean:
                seconds = min(seconds, tokens / (LEAST_SPEED * mean))
            entry.throughput.update(tokens, seconds)
            self._known.add(entry.throughput)
            entry.failures = 0
            entry.banned_until_s = entry.probed_until_s = 0.0
            entry.reliability += RELIABILITY_SMOOTHING * (1.0 - entry.reliability)

    def failed(self, peer: str, now_s: float) -> None:
        """Bans the peer, twice as long as the last time.

        What fails while it is banned already was sent before: one lost connection
        fails everything in flight, and is one failure.
        """
        entry = self._peers.get(peer)
        if entry and entry.banned_until_s <= now_s:
            entry.banned_until_s = now_s + self._ban_length_s(entry)
            entry.failures += 1
            entry.probed_until_s = 0.0
            entry.reliability = max(LEAST_RELIABILITY, entry.reliability / 2)

    def pause(self, peer: str, until_s: float) -> None:
        """Leaves the peer alone for a moment, through no fault of its own."""
        if entry := self._peers.get(peer):
            entry.probed_until_s = 0.0
            entry.paused_until_s = max(entry.paused_until_s, until_s)

    def _ban_length_s(self, entry: _Peer) -> float:
        doubled_s = self._ban_s * 2 ** min(entry.failures, MAX_DOUBLINGS)
        return min(self._max_ban_s, doubled_s)

    def _push(self, peer: str) -> None:
        entry = self._peers[peer]
        heapq.heappush(self._heap, (entry.finish_s, entry.turn, peer))

    def _cost_s(self, entry: _Peer, tokens: int) -> float:
        """Seconds that the work should take: the others' mean for an unmeasured peer.

        While nobody is measured the cost is 0, and turns alone make it round-robin: a
        made-up figure would outweigh the first real ones for a long time.
        """
        mean = self._known.mean
        if mean is None:
            return 0.0
        rate = max(entry.throughput.tokens_per_s or mean, LEAST_SPEED * mean)
        return tokens / (rate * entry.reliability)
