"""``AllReduce`` in process, by adding up in the order of the peers' names.

As with the real one, every member serves a part of the mean and needs everybody's
contribution for it: so a pair that cannot reach each other makes the round void for
all, each naming whom it lacked.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from swarm_jax.errors import AllReduceVoid
from swarm_jax.net.local_wires import SILENT_HEARTBEATS, Event, Wires


@dataclass(eq=False, slots=True)
class _Member:
    peer: str
    arrays: Sequence[np.ndarray]
    mean: asyncio.Future
    silent: dict[str, int] = field(default_factory=dict)

    def fail(self, missing: Iterable[str], reason: str) -> None:
        if not self.mean.done():
            self.mean.set_exception(AllReduceVoid(tuple(sorted(missing)), reason))


class Round:
    """One group's round, as all its members see it."""

    def __init__(self, group_id: str, peers: Sequence[str], wires: Wires):
        self.group_id = group_id
        self.peers = tuple(peers)
        self.members: dict[str, _Member] = {}
        self.result: list[np.ndarray] | None = None
        self._wires = wires
        self._gone: set[str] = set()
        self._lost: set[str] = set()

    def report(self, kind: str, peer: str) -> None:
        group = {"group_id": self.group_id, "peers": self.peers}
        self._wires.report(Event(kind, "allreduce", peer, header=group))

    def join(self, member: _Member) -> None:
        self.members[member.peer] = member
        if lost := self._gone or self._lost:
            member.fail(lost, "it is gone")

    def lose(self, peer: str, *, gone: bool) -> None:
        """Somebody is dead, or has given up before the mean was complete."""
        if self.result is None and peer in self.peers:
            (self._gone if gone else self._lost).add(peer)
            for member in self.members.values():
                if member.peer != peer:
                    member.fail([peer], "it is gone")

    def lacking(self, peer: str) -> list[str]:
        """Whom ``peer`` has not heard of, those that never came first."""
        absent = [p for p in self.peers if p not in self.members]
        return absent or [p for p in self.peers if not self._can_take(peer, p)]

    @property
    def _is_void(self) -> bool:
        return bool(self._gone or self._lost)

    def advance(self) -> None:
        """Completes the mean when everybody can reach everybody, and sends it out."""
        if (
            len(self.members) < len(self.peers)
            or self._is_void
            or self.result is not None
        ):
            return
        if all(self._can_take(a, b) for a in self.peers for b in self.peers):
            given = [self.members[peer].arrays for peer in self.peers]
            self.result = [_mean(column) for column in zip(*given, strict=True)]
            loop = asyncio.get_running_loop()
            for member in self.members.values():
                latency_s = max(
                    self._wires.latency_s(p, member.peer) for p in self.peers
                )
                loop.call_later(latency_s, self.hand_out, member)

    def hand_out(self, member: _Member) -> None:
        if self.result is None or member.mean.done():
            return
        self.report("allreduce_ready", member.peer)
        reached = all(self._can_take(member.peer, other) for other in self.peers)
        if reached and not member.mean.done():
            member.mean.set_result([np.array(array) for array in self.result])

    def heartbeat(self, member: _Member) -> None:
        """Gives up whoever has been silent for three heartbeats."""
        if member.peer in self._wires.frozen:
            return
        for other in self.peers:
            heard = self._can_take(member.peer, other)
            member.silent[other] = 0 if heard else member.silent.get(other, 0) + 1
        silent = [p for p, n in member.silent.items() if n >= SILENT_HEARTBEATS]
        if silent:
            member.fail(silent, f"silent for {SILENT_HEARTBEATS} heartbeats")

    def _can_take(self, receiver: str, sender: str) -> bool:
        return sender == receiver or (
            self._wires.hears(receiver, sender)
            and not self._wires.is_broken(sender, receiver)
        )


class LocalAllReduce:
    """``AllReduce`` of one peer.

    Args:
        rounds: Of all peers, by group id.
        is_gone: Whether a peer is dead.
    """

    def __init__(
        self,
        peer_id: str,
        wires: Wires,
        rounds: dict[str, Round],
        is_gone: Callable[[str], bool],
        heartbeat_s: float,
    ):
        self._peer_id = peer_id
        self._wires = wires
        self._rounds = rounds
        self._is_gone = is_gone
        self._heartbeat_s = heartbeat_s

    async def average(
        self,
        group_id: str,
        peers: Sequence[str],
        arrays: Sequence[np.ndarray],
        *,
        timeout_s: float,
    ) -> list[np.ndarray]:
        assert self._peer_id in peers
        await self._wires.awake(self._peer_id)
        if group_id not in self._rounds:
            self._rounds[group_id] = Round(group_id, sorted(peers), self._wires)
        round_ = self._rounds[group_id]
        if round_.peers != tuple(sorted(peers)):
            raise AllReduceVoid((), f"the members of group {group_id} disagree")
        round_.report("allreduce_joined", self._peer_id)
        loop = asyncio.get_running_loop()
        member = _Member(self._peer_id, arrays, loop.create_future())
        member.mean.add_done_callback(_retrieve)
        round_.join(member)
        for peer in filter(self._is_gone, peers):
            round_.lose(peer, gone=True)
        round_.advance()
        self._beat_later(round_, member)
        try:
            async with asyncio.timeout(timeout_s):
                mean = await member.mean
                await self._wires.awake(self._peer_id)
                return mean
        except TimeoutError as error:
            lacked = tuple(round_.lacking(self._peer_id))
            void = AllReduceVoid(lacked, f"nothing within {timeout_s:g} s")
            raise void from error
        finally:
            member.mean.cancel()
            round_.lose(self._peer_id, gone=False)
            # Until then a member that comes late learns that the round is over.
            loop.call_later(timeout_s, self._rounds.pop, group_id, None)

    def _beat_later(self, round_: Round, member: _Member) -> None:
        loop = asyncio.get_running_loop()
        beat = loop.call_later(self._heartbeat_s, self._beat, round_, member)
        member.mean.add_done_callback(lambda _: beat.cancel())

    def _beat(self, round_: Round, member: _Member) -> None:
        """Gives up the silent, and goes on where a link has healed."""
        if not member.mean.done():
            round_.heartbeat(member)
            round_.advance()
            round_.hand_out(member)
            self._beat_later(round_, member)


def _mean(column: Sequence[np.ndarray]) -> np.ndarray:
    """One by one in a fixed order, so that the result is the same in every run."""
    return sum(column[1:], start=column[0]) / column[0].dtype.type(len(column))


def _retrieve(mean: asyncio.Future) -> None:
    """Whoever waited may be gone: asyncio would complain of an unseen exception."""
    if not mean.cancelled():
        mean.exception()
