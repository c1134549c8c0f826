"""In-process adapter: all peers of a swarm in one event loop, with injected faults.

It works on a virtual clock. Headers pass through msgpack, so that what could not travel
fails here too; arrays are passed by reference, read-only.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import numpy as np

from swarm_jax.errors import (
    AllReduceVoid,
    BadMessage,
    PeerLost,
    PeerStalled,
    PeerTimeout,
    RemoteError,
)
from swarm_jax.net.protocols import Message, Record, Service, spec_of

SILENT_HEARTBEATS = 3


class LocalNetwork:
    """The wires between the peers of one process.

    Args:
        heartbeat_s: A frozen peer is noticed after three of these.
        latency_s: One-way delay between two peers.
    """

    def __init__(
        self,
        *,
        heartbeat_s: float = 1.0,
        latency_s: Callable[[str, str], float] = lambda sender, receiver: 0.0,
    ):
        self.heartbeat_s = heartbeat_s
        self.latency_s = latency_s
        self._peers: dict[str, LocalCalls] = {}
        self._records: dict[str, dict[str, Record]] = {}
        self._rounds: dict[str, _Round] = {}

    def calls(self, peer_id: str) -> "LocalCalls":
        assert peer_id not in self._peers, f"{peer_id} exists"
        self._peers[peer_id] = LocalCalls(self, peer_id)
        return self._peers[peer_id]

    def directory(self) -> "LocalDirectory":
        return LocalDirectory(self._records)

    def allreduce(self, peer_id: str) -> "LocalAllReduce":
        return LocalAllReduce(self, self._rounds, peer_id)

    def kill(self, peer_id: str) -> None:
        """The peer's process is gone: its calls end, those to it break."""
        self._peers[peer_id].kill()
        for round_ in self._rounds.values():
            round_.lose(peer_id)

    def forget(self, peer_id: str) -> None:
        """A dead peer's name can be used again, as by a restarted process."""
        assert not self.is_alive(peer_id)
        del self._peers[peer_id]

    def freeze(self, peer_id: str) -> None:
        """The peer stops to answer, and to send heartbeats, until ``thaw``."""
        self._peers[peer_id].freeze()

    def thaw(self, peer_id: str) -> None:
        self._peers[peer_id].thaw()

    def is_alive(self, peer_id: str) -> bool:
        return peer_id in self._peers and self._peers[peer_id].alive

    def find(self, peer_id: str) -> "LocalCalls | None":
        return self._peers.get(peer_id)


class LocalCalls:
    """``PeerCalls`` of one peer."""

    def __init__(self, network: LocalNetwork, peer_id: str):
        self.peer_id = peer_id
        self.alive = True
        self._network = network
        self._service: Service | None = None
        self._incoming: dict[asyncio.Task, tuple[str, asyncio.Future]] = {}
        self._outgoing: set[asyncio.Future] = set()
        self._thawed = asyncio.Event()
        self._thawed.set()

    async def serve(self, service: Service) -> None:
        self._service = service

    async def call(self, peer: str, message: Message, *, timeout_s: float) -> Message:
        answer = asyncio.get_running_loop().create_future()
        self._outgoing.add(answer)
        delivery = asyncio.ensure_future(self._deliver(peer, message, answer))
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise PeerTimeout(peer, f"no answer within {timeout_s:g} s") from error
        finally:
            self._outgoing.discard(answer)
            delivery.cancel()
            callee = self._network.find(peer)
            if callee is not None:
                callee.forget(answer)

    async def _deliver(
        self, peer: str, message: Message, answer: asyncio.Future
    ) -> None:
        await asyncio.sleep(self._network.latency_s(self.peer_id, peer))
        callee = self._network.find(peer)
        if not self.alive:
            _fail(answer, PeerLost(self.peer_id, "this peer is closed"))
        elif callee is None or not callee.alive or callee._service is None:
            _fail(answer, PeerLost(peer, "cannot be reached"))
        else:
            callee.receive(self.peer_id, _through_msgpack(message), answer)
            await callee.watch(answer)

    def receive(self, sender: str, message: Message, answer: asyncio.Future) -> None:
        specs = [spec_of(array) for array in message.arrays]
        try:
            refusal = self._service.admit(sender, message.header, specs)
        except BadMessage as error:
            self._drop(sender, error, answer)
            return
        except Exception as error:  # as on the wire: the caller hears of it
            _fail(answer, RemoteError(self.peer_id, repr(error)))
            return
        if refusal is not None:
            _resolve(answer, _through_msgpack(refusal))
            return
        task = asyncio.ensure_future(self._service.handle(sender, message))
        self._incoming[task] = (sender, answer)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task) -> None:
        sender, answer = self._incoming.pop(task, ("", None))
        if answer is None:
            return
        error = RuntimeError("cancelled") if task.cancelled() else task.exception()
        if isinstance(error, BadMessage) and error.peer == sender:
            self._drop(sender, error, answer)
        elif error is not None:
            _fail(answer, RemoteError(self.peer_id, repr(error)))
        else:
            asyncio.ensure_future(self._send_back(sender, task.result(), answer))

    async def _send_back(
        self, caller: str, reply: Message, answer: asyncio.Future
    ) -> None:
        await self._thawed.wait()
        await asyncio.sleep(self._network.latency_s(self.peer_id, caller))
        if self.alive:
            _resolve(answer, _through_msgpack(reply))

    async def watch(self, answer: asyncio.Future) -> None:
        """Fails a call to this peer when it is frozen for three heartbeats."""
        silence_s = SILENT_HEARTBEATS * self._network.heartbeat_s
        while not answer.done():
            await asyncio.sleep(self._network.heartbeat_s)
            if self._thawed.is_set():
                continue
            try:
                async with asyncio.timeout(silence_s):
                    await self._thawed.wait()
            except TimeoutError:
                _fail(answer, PeerStalled(self.peer_id, f"silent for {silence_s:g} s"))

    def forget(self, answer: asyncio.Future) -> None:
        """The caller no longer waits: cancel what it asked for."""
        for task, (_, waiting) in list(self._incoming.items()):
            if waiting is answer:
                task.cancel()

    def _drop(self, sender: str, error: BadMessage, answer: asyncio.Future) -> None:
        reason = f"dropped this connection: {error.reason}"
        _fail(answer, PeerLost(self.peer_id, reason))
        for task, (other, waiting) in list(self._incoming.items()):
            if other == sender:
                task.cancel()
                _fail(waiting, PeerLost(self.peer_id, reason))

    def freeze(self) -> None:
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    def kill(self) -> None:
        self.alive = False
        for task, (_, answer) in list(self._incoming.items()):
            task.cancel()
            _fail(answer, PeerLost(self.peer_id, "connection reset"))
        for answer in list(self._outgoing):
            _fail(answer, PeerLost(self.peer_id, "this peer is closed"))

    async def close(self) -> None:
        self.kill()


class LocalDirectory:
    """``Directory`` in a dict, on the event loop's clock."""

    def __init__(self, records: dict[str, dict[str, Record]]):
        self._records = records

    async def store(
        self, key: str, subkey: str, value: Any, *, expires_in_s: float
    ) -> bool:
        expires_at_s = self.now_s() + expires_in_s
        old = self._records.setdefault(key, {}).get(subkey)
        if old is not None:
            expires_at_s = max(expires_at_s, old.expires_at_s)
        packed = msgpack.unpackb(msgpack.packb(value))
        self._records[key][subkey] = Record(packed, expires_at_s)
        return True

    async def get(self, key: str) -> dict[str, Record]:
        now_s = self.now_s()
        found = self._records.get(key, {})
        return {sub: r for sub, r in found.items() if r.expires_at_s > now_s}

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()


class _Round:
    def __init__(self, peers: Sequence[str]):
        self.peers = tuple(peers)
        self.given: dict[str, Sequence[np.ndarray]] = {}
        self.mean: asyncio.Future = asyncio.get_running_loop().create_future()
        self.mean.add_done_callback(lambda done: done.exception())

    def give(self, peer: str, arrays: Sequence[np.ndarray]) -> None:
        self.given[peer] = arrays
        if len(self.given) == len(self.peers) and not self.mean.done():
            columns = zip(*(self.given[p] for p in self.peers), strict=True)
            self.mean.set_result([_mean(column) for column in columns])

    def lose(self, peer: str) -> None:
        if peer in self.peers:
            _fail(self.mean, AllReduceVoid((peer,), "it is gone"))


class LocalAllReduce:
    """``AllReduce`` by adding up in the order of the peers' names, in any dtype."""

    def __init__(self, network: LocalNetwork, rounds: dict[str, _Round], peer_id: str):
        self._network = network
        self._rounds = rounds
        self._peer_id = peer_id

    async def average(
        self,
        group_id: str,
        peers: Sequence[str],
        arrays: Sequence[np.ndarray],
        *,
        timeout_s: float,
    ) -> list[np.ndarray]:
        assert self._peer_id in peers
        if group_id not in self._rounds:
            self._rounds[group_id] = _Round(sorted(peers))
        round_ = self._rounds[group_id]
        if round_.peers != tuple(sorted(peers)):
            raise AllReduceVoid((), f"the members of group {group_id} disagree")
        for peer in round_.peers:
            if not self._network.is_alive(peer):
                round_.lose(peer)
        round_.give(self._peer_id, arrays)
        try:
            async with asyncio.timeout(timeout_s):
                mean = await asyncio.shield(round_.mean)
        except TimeoutError as error:
            lacked = tuple(p for p in round_.peers if p not in round_.given)
            void = AllReduceVoid(lacked, f"nothing within {timeout_s:g} s")
            raise void from error
        return [np.array(array) for array in mean]


def _mean(column: Sequence[np.ndarray]) -> np.ndarray:
    """One by one in a fixed order, so that the result is the same in every run."""
    return sum(column[1:], start=column[0]) / column[0].dtype.type(len(column))


def _through_msgpack(message: Message) -> Message:
    header = msgpack.unpackb(msgpack.packb(dict(message.header)), strict_map_key=False)
    return Message(header, tuple(_read_only(array) for array in message.arrays))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _resolve(answer: asyncio.Future, reply: Message) -> None:
    if not answer.done():
        answer.set_result(reply)


def _fail(answer: asyncio.Future, error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
