"""``PeerCalls`` in process, with the faults of ``local_wires``.

Headers pass through msgpack, so that what could not travel fails here too; arrays are
passed by reference, read-only.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from swarm_jax.errors import (
    BadMessage,
    PeerError,
    PeerLost,
    PeerStalled,
    PeerTimeout,
    RemoteError,
)
from swarm_jax.net.local_wires import SILENT_HEARTBEATS, Event, Wires
from swarm_jax.net.protocols import Message, Service, spec_of


@dataclass(eq=False, slots=True)
class _Call:
    """One call, as both ends see it.

    Attributes:
        silent: Heartbeats in a row that the caller did not hear.
    """

    caller: str
    callee: str
    message: Message
    answer: asyncio.Future
    arrived: bool = False
    silent: int = 0

    @property
    def op(self) -> str:
        return str(self.message.header.get("op", ""))

    def event(self, kind: str, peer: str) -> Event:
        other = self.callee if peer == self.caller else self.caller
        return Event(kind, self.op, peer, other, self.message.header)

    def resolve(self, reply: Message) -> None:
        if not self.answer.done():
            self.answer.set_result(reply)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class LocalCalls:
    """``PeerCalls`` of one peer.

    Args:
        find: Gives the calls of another peer, if there is one.
    """

    def __init__(
        self,
        peer_id: str,
        wires: Wires,
        find: Callable[[str], "LocalCalls | None"],
        heartbeat_s: float,
    ):
        self.peer_id = peer_id
        self.alive = True
        self._wires = wires
        self._find = find
        self._heartbeat_s = heartbeat_s
        self._service: Service | None = None
        self._incoming: dict[asyncio.Task, _Call] = {}
        self._outgoing: set[_Call] = set()
        self._unanswered: set[_Call] = set()
        self._unread: list[tuple[_Call, Callable[[], None]]] = []

    @property
    def handling(self) -> int:
        """Calls of others that have not been answered."""
        return len(self._incoming)

    async def serve(self, service: Service) -> None:
        self._service = service

    def is_same_host(self, peer: str) -> bool:
        return False

    async def call(self, peer: str, message: Message, *, timeout_s: float) -> Message:
        await self._wires.awake(self.peer_id)
        loop = asyncio.get_running_loop()
        call = _Call(self.peer_id, peer, message, loop.create_future())
        self._outgoing.add(call)
        self._wires.report(call.event("request_sent", self.peer_id))
        delivery = asyncio.ensure_future(self._deliver(call))
        call.answer.add_done_callback(_retrieve)
        self._listen_later(call)
        heard = False
        try:
            async with asyncio.timeout(timeout_s):
                reply = await call.answer
            heard = True
            return reply
        except TimeoutError as error:
            await self._wires.awake(self.peer_id)
            raise PeerTimeout(peer, f"no answer within {timeout_s:g} s") from error
        finally:
            call.answer.cancel()
            self._outgoing.discard(call)
            delivery.cancel()
            if call.arrived and not heard:
                self._hang_up(call)

    async def _deliver(self, call: _Call) -> None:
        harm = self._wires.take_harm(call.caller, call.callee)
        try:
            await self._carry(call, 0.0 if harm.duplicate else harm.delay_s)
            if harm.corrupt:
                message = Message(_damaged(call.message.header), call.message.arrays)
            else:
                message = _through_msgpack(call.message)
            self._arrive(call, message)
            if harm.duplicate:
                asyncio.ensure_future(self._deliver_copy(call, message, harm.delay_s))
        except PeerLost as error:
            call.fail(error)

    async def _deliver_copy(self, call: _Call, message: Message, delay_s: float):
        unheard = asyncio.get_running_loop().create_future()
        unheard.cancel()
        copy = _Call(call.caller, call.callee, call.message, unheard)
        with contextlib.suppress(PeerLost):
            await self._carry(copy, delay_s)
            self._arrive(copy, message)

    async def _carry(self, call: _Call, delay_s: float) -> None:
        if not self.alive:
            raise PeerLost(self.peer_id, "this peer is closed")
        await self._wires.travel(call.caller, call.callee, delay_s)
        callee = self._find(call.callee)
        if not self.alive:
            raise PeerLost(self.peer_id, "this peer is closed")
        if callee is None or not callee.alive or callee._service is None:
            raise PeerLost(call.callee, "cannot be reached")

    def _arrive(self, call: _Call, message: Message) -> None:
        call.arrived = True
        callee = self._find(call.callee)
        callee._unanswered.add(call)
        call.answer.add_done_callback(lambda _: callee._unanswered.discard(call))
        self._wires.report(call.event("request_arrived", call.callee))
        callee._when_awake(call, lambda: callee._receive(call, message))

    def _listen_later(self, call: _Call) -> None:
        loop = asyncio.get_running_loop()
        listening = loop.call_later(self._heartbeat_s, self._listen, call)
        call.answer.add_done_callback(lambda _: listening.cancel())

    def _listen(self, call: _Call) -> None:
        """Once per heartbeat: a silent peer is given up after three."""
        if call.answer.done():
            return
        if self.peer_id not in self._wires.frozen:
            callee = self._find(call.callee)
            heard = (
                call.arrived
                and callee is not None
                and callee.alive
                and self._wires.hears(self.peer_id, call.callee)
            )
            call.silent = 0 if heard else call.silent + 1
        if call.silent >= SILENT_HEARTBEATS:
            silence_s = SILENT_HEARTBEATS * self._heartbeat_s
            call.fail(PeerStalled(call.callee, f"silent for {silence_s:g} s"))
        else:
            self._listen_later(call)

    def _hang_up(self, call: _Call) -> None:
        """Tells the other side that nobody waits for this answer any more."""
        callee = self._find(call.callee)
        if callee is not None and callee.alive:
            asyncio.ensure_future(self._send_hang_up(call, callee))

    async def _send_hang_up(self, call: _Call, callee: "LocalCalls") -> None:
        with contextlib.suppress(PeerLost):  # a broken link ends its calls itself
            await self._wires.travel(call.caller, call.callee)
            callee._when_awake(
                call,
                lambda: callee._cancel(lambda other: other.message is call.message),
            )

    def _when_awake(self, call: _Call, action: Callable[[], None]) -> None:
        """What arrives at a peer that stands still waits in its kernel's buffers."""
        if not self.alive:
            return
        if self.peer_id in self._wires.frozen:
            self._unread.append((call, action))
        else:
            action()

    def read_on(self) -> None:
        """After a standstill: everything that came meanwhile, in its order."""
        unread, self._unread = self._unread, []
        for call, action in unread:
            self._when_awake(call, action)

    def _receive(self, call: _Call, message: Message) -> None:
        specs = [spec_of(array) for array in message.arrays]
        if self.peer_id in self._wires.refusing:
            self._answer(call, RemoteError(self.peer_id, "refuses all calls"))
            return
        try:
            refusal = self._service.admit(call.caller, message.header, specs)
        except BadMessage as error:
            self._drop(call.caller, error, call)
            return
        except Exception as error:  # as on the wire: the caller hears of it
            self._answer(call, RemoteError(self.peer_id, repr(error)))
            return
        if refusal is not None:
            self._answer(call, refusal)
            return
        task = asyncio.ensure_future(self._service.handle(call.caller, message))
        self._incoming[task] = call
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task) -> None:
        call = self._incoming.pop(task)
        error = RuntimeError("cancelled") if task.cancelled() else task.exception()
        if isinstance(error, BadMessage) and error.peer == call.caller:
            self._drop(call.caller, error, call)
        elif error is not None:
            self._answer(call, RemoteError(self.peer_id, repr(error)))
        else:
            self._answer(call, task.result())

    def _answer(self, call: _Call, reply: Message | PeerError) -> None:
        if not call.answer.done() and self.alive:
            self._wires.report(call.event("answered", self.peer_id))
            asyncio.ensure_future(self._send_back(call, reply))

    async def _send_back(self, call: _Call, reply: Message | PeerError) -> None:
        harm = self._wires.take_harm(call.callee, call.caller)
        try:
            if self.alive:
                await self._wires.travel(call.callee, call.caller, harm.delay_s)
        except PeerLost as error:
            call.fail(PeerLost(self.peer_id, error.reason))
        await self._wires.awake(call.caller)
        if not self.alive or call.answer.done():
            return
        self._wires.report(call.event("answer_arrived", call.caller))
        if harm.corrupt:
            call.fail(BadMessage(self.peer_id, "the answer is malformed"))
            self.disconnect(call.caller, "dropped this connection")
        elif isinstance(reply, PeerError):
            call.fail(reply)
        else:
            call.resolve(_through_msgpack(reply))

    def _drop(self, sender: str, error: BadMessage, call: _Call) -> None:
        reason = f"dropped this connection: {error.reason}"
        self._lose(call, reason)
        self.disconnect(sender, reason)

    def disconnect(self, caller: str, reason: str) -> None:
        """The connection of ``caller`` to this peer is gone with all its calls."""
        self._cancel(lambda other: other.caller == caller)
        self._unread = [item for item in self._unread if item[0].caller != caller]
        for call in list(self._unanswered):
            if call.caller == caller:
                self._lose(call, reason)

    def _cancel(self, which: Callable[[_Call], bool]) -> None:
        for task, call in list(self._incoming.items()):
            if which(call):
                task.cancel()

    def _lose(self, call: _Call, reason: str) -> None:
        """The caller hears of a lost connection, if anything reaches it."""
        if self._wires.is_open(self.peer_id, call.caller):
            call.fail(PeerLost(self.peer_id, reason))

    def lose_calls_to(self, callee: str) -> None:
        for call in list(self._outgoing):
            if call.callee == callee:
                call.fail(PeerLost(callee, "connection reset"))

    def kill(self) -> None:
        self.alive = False
        self._unread.clear()
        self._cancel(lambda _: True)
        for call in list(self._unanswered):
            self._lose(call, "connection reset")
        for call in list(self._outgoing):
            call.fail(PeerLost(self.peer_id, "this peer is closed"))

    async def close(self) -> None:
        self.kill()


def _retrieve(answer: asyncio.Future) -> None:
    """Whoever waited may be gone: asyncio would complain of an unseen exception."""
    if not answer.cancelled():
        answer.exception()


def _damaged(header: Mapping[str, Any]) -> dict[str, Any]:
    """Names and texts survive; whatever has a structure does not."""
    return {k: v if isinstance(v, str) else None for k, v in header.items()}


def _through_msgpack(message: Message) -> Message:
    header = msgpack.unpackb(msgpack.packb(dict(message.header)), strict_map_key=False)
    return Message(header, tuple(_read_only(array) for array in message.arrays))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view
