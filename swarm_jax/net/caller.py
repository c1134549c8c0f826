"""The end of a stream that asks. ``wire`` says what both ends keep to."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from swarm_jax.errors import (
    BadMessage,
    PeerError,
    PeerLost,
    PeerStalled,
    PeerTimeout,
    RemoteError,
)
from swarm_jax.net.budget import Budget, Room
from swarm_jax.net.frames import (
    Head,
    IncomingBody,
    Kind,
    body_frames,
    encode,
    frame,
    parse_head,
)
from swarm_jax.net.link import Link
from swarm_jax.net.protocols import Message
from swarm_jax.net.wire import HEAD_WEIGHT, MAX_CALLS, SILENT_HEARTBEATS


@dataclass(slots=True)
class _Outgoing:
    """A call that waits for its answer."""

    answer: asyncio.Future
    head: Head | None = None
    body: IncomingBody | None = None
    room: Room | None = None


class Caller(Link):
    """The end of a stream that asks.

    Args:
        peer: The other end.
        heartbeat_s: Asked of the callee; after three without a byte it is left.
        max_message_bytes: Larger messages are neither sent nor received.
        budget: Bounds the answers that are being received, of all streams together.
        on_lost: Called once when the stream has ended, for whatever reason.
    """

    def __init__(
        self,
        peer: str,
        *,
        heartbeat_s: float,
        max_message_bytes: int,
        budget: Budget | None = None,
        on_lost: Callable[[], object] = lambda: None,
    ):
        super().__init__(peer, max_message_bytes, on_lost)
        self._budget = budget or Budget.for_messages(max_message_bytes)
        self._heartbeat_s = heartbeat_s
        self._calls: dict[int, _Outgoing] = {}
        self._ids = itertools.count(1)
        self._last_id = 0
        self._free = asyncio.Semaphore(MAX_CALLS)
        self._heard_s = self._look_s = 0.0
        self._watch: asyncio.TimerHandle | None = None

    async def call(self, message: Message, *, timeout_s: float) -> Message:
        """As ``PeerCalls.call``.

        Raises:
            ValueError: ``message`` cannot be sent.
        """
        head, views = encode(
            message,
            heartbeat_s=float(self._heartbeat_s),
            max_bytes=self._max_message_bytes,
        )
        try:
            async with asyncio.timeout(timeout_s), self._free:
                return await self._exchange(head, views)
        except TimeoutError as error:
            reason = f"no answer within {timeout_s:g} s"
            raise PeerTimeout(self.peer, reason) from error

    async def _exchange(self, head: bytes, views: list[memoryview]) -> Message:
        answer = self._loop.create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        call_id, sent = 0, False
        try:
            async with self._in_order(views):
                call_id = self._open(answer)
                sent = await self._write([frame(Kind.REQUEST, call_id, head)])
                for pieces in body_frames(call_id, views):
                    if answer.done() or not await self._write(pieces):
                        break
            return await answer
        finally:
            if call := self._calls.pop(call_id, None):
                if call.room is not None:
                    call.room.release()
                if sent and (not answer.done() or answer.cancelled()):
                    self._write_now(Kind.CANCEL, call_id)

    def _open(self, answer: asyncio.Future) -> int:
        """Notes a call that is sent now: its number, which is above those before it."""
        if self.lost:
            raise PeerLost(self.peer, "the connection is closed")
        if not self._calls:
            self._heard()
        call_id = self._last_id = next(self._ids)
        self._calls[call_id] = _Outgoing(answer)
        if self._watch is None:
            self._look_s = self._loop.time()
            self._check_silence()
        return call_id

    def _heard(self) -> None:
        self._heard_s = self._loop.time()

    def _check_silence(self) -> None:
        """Looks whether the peer was heard of; a look that comes late proves nothing.

        For then it was us who stood still, and what the peer sent may wait to be read.
        """
        self._watch = None
        if not self._calls:
            return
        now_s, limit_s = self._loop.time(), SILENT_HEARTBEATS * self._heartbeat_s
        if now_s > self._look_s + self._heartbeat_s / 2:
            self._heard_s = max(self._heard_s, now_s + self._heartbeat_s - limit_s)
        if now_s >= self._heard_s + limit_s:
            self._fail(PeerStalled(self.peer, f"silent for {limit_s:g} s"))
            self.abort()
        else:
            self._look_s = self._heard_s + limit_s
            self._watch = self._loop.call_at(self._look_s, self._check_silence)

    def drop(self, error: BadMessage) -> None:
        self._fail(error)
        super().drop(error)

    def _on_lost(self, reason: str) -> None:
        self._fail(PeerLost(self.peer, reason))

    def _fail(self, error: PeerError) -> None:
        for call in self._calls.values():
            if not call.answer.done():
                call.answer.set_exception(error)

    def body_of(self, call_id: int) -> IncomingBody | None:
        call = self._find(call_id)
        return call.body if call else None

    def on_frame(self, kind: Kind, call_id: int, payload: bytearray) -> None:
        if kind is Kind.HEARTBEAT:
            return
        if kind not in (Kind.RESPONSE, Kind.ERROR, Kind.BODY):
            raise BadMessage(self.peer, f"a {kind.name} frame from a callee")
        call = self._find(call_id)
        if call is None or call.answer.done():
            return
        if kind is Kind.ERROR:
            reason = payload.decode(errors="replace")
            call.answer.set_exception(RemoteError(self.peer, reason))
            return
        if kind is Kind.RESPONSE and not self._expect(call, payload):
            return
        if call.head and call.body and not call.body.missing_bytes:
            call.answer.set_result(Message(call.head.header, call.body.finish()))

    def _expect(self, call: _Outgoing, payload: bytearray) -> bool:
        """Makes room for an answer's body; without room the call ends."""
        head = parse_head(self.peer, payload)
        if call.head is not None:
            raise BadMessage(self.peer, "two responses to one call")
        if head.body_bytes > self._max_message_bytes:
            raise BadMessage(self.peer, f"a response of {head.body_bytes} bytes")
        size = HEAD_WEIGHT * len(payload) + head.body_bytes
        call.room = self._budget.answer(self.peer, size)
        if call.room is None:
            reason = f"no room for its answer of {head.body_bytes} bytes"
            call.answer.set_exception(RemoteError(self.peer, reason))
            return False
        call.head, call.body = head, IncomingBody(head.specs)
        return True

    def _find(self, call_id: int) -> _Outgoing | None:
        """None for a call that is over: its frames may still be on their way."""
        if not 0 < call_id <= self._last_id:
            raise BadMessage(self.peer, f"an answer to call {call_id}, never made")
        return self._calls.get(call_id)
