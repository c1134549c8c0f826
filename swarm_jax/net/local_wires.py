"""What can go wrong between the peers of one process, and who wants to know.

Faults are states (a link is cut, a peer stands still) or are meant for one message (the
next one on a link is damaged). They are set by whoever listens to events, so a fault
strikes exactly where a schedule says.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from swarm_jax.errors import PeerLost

DIRECTORY = "directory"
"""The directory's name as one end of a link."""
EVERYBODY = "*"
"""As one end of a link: all others, and the directory."""

SILENT_HEARTBEATS = 3


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens to a peer, reported just before it does.

    Attributes:
        kind: request_sent, request_arrived, answered, answer_arrived,
            allreduce_joined, allreduce_ready; devices and others add kinds of their
            own.
        op: The request's "op", or the name of an operation.
        peer: Where it happens.
        other: The other end, if there is one.
        header: The request's; of an all-reduce its group_id and peers.
    """

    kind: str
    op: str
    peer: str
    other: str = ""
    header: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OneMessage:
    """What becomes of one message.

    Attributes:
        corrupt: The receiver sees a malformed message.
        duplicate: A request arrives twice; the second copy's answer is dropped.
        delay_s: It (of two: the second copy) is held back, so that others overtake it.
    """

    corrupt: bool = False
    duplicate: bool = False
    delay_s: float = 0.0


UNHARMED = OneMessage()


class Wires:
    """State of all links and peers.

    A link is a (sender, receiver) pair; one of them may be ``EVERYBODY``.

    Args:
        latency_s: One-way delay between two peers.
    """

    def __init__(self, latency_s: Callable[[str, str], float]):
        self.listeners: list[Callable[[Event], None]] = []
        self.frozen: set[str] = set()
        self.refusing: set[str] = set()
        self.latency_s = latency_s
        self._silent: set[tuple[str, str]] = set()
        self._broken: set[tuple[str, str]] = set()
        self._delays_s: dict[tuple[str, str], float] = {}
        self._next: dict[tuple[str, str], deque[OneMessage]] = defaultdict(deque)
        self._changed = asyncio.Event()

    def report(self, event: Event) -> None:
        for listener in list(self.listeners):
            listener(event)

    def cut(self, sender: str, receiver: str, *, silent: bool) -> None:
        """Silent: messages wait for the link to heal; otherwise sending fails."""
        (self._silent if silent else self._broken).add((sender, receiver))

    def heal(self, sender: str, receiver: str) -> None:
        self._silent.discard((sender, receiver))
        self._broken.discard((sender, receiver))
        self.changed()

    def delay(self, sender: str, receiver: str, seconds: float) -> None:
        """Every message takes ``seconds`` longer; 0 ends it."""
        self._delays_s[sender, receiver] = seconds

    def harm_next(self, sender: str, receiver: str, what: OneMessage) -> None:
        self._next[sender, receiver].append(what)

    def take_harm(self, sender: str, receiver: str) -> OneMessage:
        waiting = self._next.get((sender, receiver))
        return waiting.popleft() if waiting else UNHARMED

    def is_open(self, sender: str, receiver: str) -> bool:
        return not self._in(self._silent, sender, receiver)

    def is_broken(self, sender: str, receiver: str) -> bool:
        return self._in(self._broken, sender, receiver)

    def hears(self, receiver: str, sender: str) -> bool:
        """Whether heartbeats of ``sender`` reach ``receiver`` now."""
        return sender not in self.frozen and self.is_open(sender, receiver)

    async def travel(self, sender: str, receiver: str, delay_s: float = 0.0) -> None:
        """Returns when a message that leaves now arrives.

        Raises:
            PeerLost: The link is broken.
        """
        await self.awake(sender)
        delays_s = (self._delays_s.get(link, 0.0) for link in _links(sender, receiver))
        await asyncio.sleep(self.latency_s(sender, receiver) + delay_s + sum(delays_s))
        await self._until(lambda: self.is_open(sender, receiver))
        if self.is_broken(sender, receiver):
            raise PeerLost(receiver, "cannot be reached")

    async def awake(self, peer: str) -> None:
        """Returns when ``peer`` does not stand still."""
        await self._until(lambda: peer not in self.frozen)

    def changed(self) -> None:
        """Wakes whoever waits for a link or a peer."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _in(self, links: set[tuple[str, str]], sender: str, receiver: str) -> bool:
        return bool(links) and any(link in links for link in _links(sender, receiver))


def _links(sender: str, receiver: str) -> tuple[tuple[str, str], ...]:
    return (sender, receiver), (sender, EVERYBODY), (EVERYBODY, receiver)
