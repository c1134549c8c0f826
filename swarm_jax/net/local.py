"""In-process adapter: all peers of a swarm in one event loop, with injected faults.

It works on a virtual clock. Its parts: ``local_wires`` (links, faults, events),
``local_calls``, ``local_directory``, ``local_allreduce``.

A frozen peer takes nothing in and lets nothing out: what arrives waits, as in a
kernel's buffers, and is taken in its order at the thaw. What its own code does on
timers goes on, unseen from outside: a real process would do it all at the thaw.
"""

from collections.abc import Callable, Collection

from swarm_jax.net.local_allreduce import LocalAllReduce, Round
from swarm_jax.net.local_calls import LocalCalls
from swarm_jax.net.local_directory import LocalDirectory, Records
from swarm_jax.net.local_wires import DIRECTORY as DIRECTORY
from swarm_jax.net.local_wires import EVERYBODY as EVERYBODY
from swarm_jax.net.local_wires import Event as Event
from swarm_jax.net.local_wires import OneMessage as OneMessage
from swarm_jax.net.local_wires import Wires


class LocalNetwork:
    """The wires between the peers of one process.

    Args:
        heartbeat_s: A silent peer is noticed after three of these.
        latency_s: One-way delay between two peers.

    Attributes:
        wires: Links and faults that are set on them, one direction at a time.
        records: What the directory holds, and how much its readers lag behind.
    """

    def __init__(
        self,
        *,
        heartbeat_s: float = 1.0,
        latency_s: Callable[[str, str], float] = lambda sender, receiver: 0.0,
    ):
        self.heartbeat_s = heartbeat_s
        self.wires = Wires(latency_s)
        self.records = Records()
        self._peers: dict[str, LocalCalls] = {}
        self._rounds: dict[str, Round] = {}

    def calls(self, peer_id: str) -> LocalCalls:
        assert peer_id not in self._peers, f"{peer_id} exists"
        calls = LocalCalls(peer_id, self.wires, self.find, self.heartbeat_s)
        self._peers[peer_id] = calls
        return calls

    def directory(self, peer_id: str) -> LocalDirectory:
        return LocalDirectory(self.records, self.wires, peer_id, self._is_gone)

    def allreduce(self, peer_id: str) -> LocalAllReduce:
        return LocalAllReduce(
            peer_id, self.wires, self._rounds, self._is_gone, self.heartbeat_s
        )

    def kill(self, peer_id: str) -> None:
        """The peer's process is gone: its calls end, those to it break."""
        self._peers[peer_id].kill()
        self.thaw(peer_id)
        for round_ in list(self._rounds.values()):
            round_.lose(peer_id, gone=True)

    def forget(self, peer_id: str) -> None:
        """A dead peer's name can be used again, as by a restarted process."""
        assert not self.is_alive(peer_id)
        del self._peers[peer_id]

    def freeze(self, peer_id: str) -> None:
        """The peer neither takes nor sends anything, heartbeats included."""
        self.wires.frozen.add(peer_id)

    def thaw(self, peer_id: str) -> None:
        self.wires.frozen.discard(peer_id)
        self.wires.changed()
        if calls := self.find(peer_id):
            calls.read_on()

    def partition(
        self, some: Collection[str], others: Collection[str], *, silent: bool
    ) -> None:
        """Cuts all links between two groups, both ways, until ``reunite``.

        Args:
            silent: Messages wait and calls stall; otherwise connections break at once.
        """
        for one in some:
            for other in others:
                self.wires.cut(one, other, silent=silent)
                self.wires.cut(other, one, silent=silent)
                if not silent:
                    self._break(one, other)
                    self._break(other, one)

    def reunite(self, some: Collection[str], others: Collection[str]) -> None:
        for one in some:
            for other in others:
                self.wires.heal(one, other)
                self.wires.heal(other, one)

    def is_alive(self, peer_id: str) -> bool:
        return peer_id in self._peers and self._peers[peer_id].alive

    def find(self, peer_id: str) -> LocalCalls | None:
        return self._peers.get(peer_id)

    def _is_gone(self, peer_id: str) -> bool:
        """Dead; a name that was never given calls may use the rest."""
        return peer_id in self._peers and not self._peers[peer_id].alive

    def _break(self, caller: str, callee: str) -> None:
        if calls := self.find(callee):
            calls.disconnect(caller, "connection reset")
        if calls := self.find(caller):
            calls.lose_calls_to(callee)
