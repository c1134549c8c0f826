"""Calls between two peers over one long-lived byte stream, many at once.

A new stream (so every call of hivemind's own RPC) starts with a small flow-control
window and costs round trips; one kept open does not. ``Caller`` and ``Callee`` are its
two ends, and know nothing of hivemind: asyncio's reader and writer are enough.

* A callee decides on a call when its head has come, before its body. A caller that gets
  its answer (a refusal) meanwhile stops sending; what was on its way is dropped.
* While a callee has calls open it sends heartbeats, at the period that the caller asks
  for: peers may differ in it. Any byte counts as a sign of life of the whole stream.
* Frames are written one at a time, and large writers take turns, so that no message
  holds up the heartbeats or the other calls of its stream.
* A callee never stops reading, or it would miss the CANCEL that frees it. It is bounded
  by ``MAX_CALLS`` open calls: a caller waits for a free one, so more are a violation.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from swarm_jax.errors import (
    BadMessage,
    PeerError,
    PeerLost,
    PeerStalled,
    PeerTimeout,
    RemoteError,
)
from swarm_jax.net.frames import (
    MAX_ERROR_BYTES,
    Head,
    IncomingBody,
    Kind,
    body_frames,
    encode,
    frame,
    parse_head,
)
from swarm_jax.net.link import Link
from swarm_jax.net.protocols import Message, Service

MAX_CALLS = 256
SILENT_HEARTBEATS = 3
MIN_HEARTBEAT_S = 0.01

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Outgoing:
    """A call that waits for its answer."""

    answer: asyncio.Future
    head: Head | None = None
    body: IncomingBody | None = None


class Caller(Link):
    """The end of a stream that asks.

    Args:
        peer: The other end.
        heartbeat_s: Asked of the callee; after three without a byte it is left.
        max_message_bytes: Larger messages are neither sent nor received.
        on_lost: Called once when the stream has ended, for whatever reason.
    """

    def __init__(
        self,
        peer: str,
        *,
        heartbeat_s: float,
        max_message_bytes: int,
        on_lost: Callable[[], object] = lambda: None,
    ):
        super().__init__(peer, max_message_bytes, on_lost)
        self._heartbeat_s = heartbeat_s
        self._calls: dict[int, _Outgoing] = {}
        self._ids = itertools.count(1)
        self._last_id = 0
        self._free = asyncio.Semaphore(MAX_CALLS)
        self._heard_s = 0.0
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
        if self.lost:
            raise PeerLost(self.peer, "the connection is closed")
        if not self._calls:
            self._heard()
        call_id = self._last_id = next(self._ids)
        answer = self._loop.create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._calls[call_id] = _Outgoing(answer)
        if self._watch is None:
            self._check_silence()
        sent = False
        try:
            sent = await self._write([frame(Kind.REQUEST, call_id, head)])
            for pieces in body_frames(call_id, views):
                if answer.done() or not await self._write(pieces):
                    break
            return await answer
        finally:
            del self._calls[call_id]
            if sent and (not answer.done() or answer.cancelled()):
                self._write_now(Kind.CANCEL, call_id)

    def _heard(self) -> None:
        self._heard_s = self._loop.time()

    def _check_silence(self) -> None:
        self._watch = None
        limit_s = SILENT_HEARTBEATS * self._heartbeat_s
        left_s = self._heard_s + limit_s - self._loop.time()
        if self._calls and left_s <= 0:
            self._fail(PeerStalled(self.peer, f"silent for {limit_s:g} s"))
            self.abort()
        elif self._calls:
            self._watch = self._loop.call_later(left_s, self._check_silence)

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
        if kind is Kind.RESPONSE:
            self._expect(call, parse_head(self.peer, payload))
        if call.head and call.body and not call.body.missing_bytes:
            call.answer.set_result(Message(call.head.header, call.body.finish()))

    def _expect(self, call: _Outgoing, head: Head) -> None:
        if call.head is not None:
            raise BadMessage(self.peer, "two responses to one call")
        if head.body_bytes > self._max_message_bytes:
            raise BadMessage(self.peer, f"a response of {head.body_bytes} bytes")
        call.head, call.body = head, IncomingBody(head.specs)

    def _find(self, call_id: int) -> _Outgoing | None:
        """None for a call that is over: its frames may still be on their way."""
        if not 0 < call_id <= self._last_id:
            raise BadMessage(self.peer, f"an answer to call {call_id}, never made")
        return self._calls.get(call_id)


@dataclass(slots=True)
class _Incoming:
    """A call that is being received (``body``) or answered (``task``)."""

    head: Head | None = None
    body: IncomingBody | None = None
    task: asyncio.Task | None = None


class Callee(Link):
    """The end of a stream that answers.

    Args:
        peer: The other end.
        service: What answers.
        max_message_bytes: Larger messages are refused.
        on_bad: Called when the peer is dropped, to drop its other streams too.
        on_lost: Called once when the stream has ended, for whatever reason.
    """

    def __init__(
        self,
        peer: str,
        service: Service,
        *,
        max_message_bytes: int,
        on_bad: Callable[[], object] = lambda: None,
        on_lost: Callable[[], object] = lambda: None,
    ):
        super().__init__(peer, max_message_bytes, on_lost)
        self._service = service
        self._on_bad = on_bad
        self._calls: dict[int, _Incoming] = {}
        self._last_id = 0
        self._heartbeat_s = MIN_HEARTBEAT_S
        self._beat: asyncio.TimerHandle | None = None
        self.tasks: set[asyncio.Task] = set()

    def drop(self, error: BadMessage) -> None:
        super().drop(error)
        self._on_bad()

    def _on_lost(self, reason: str) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self._calls.clear()
        for task in self.tasks:
            task.cancel()

    def body_of(self, call_id: int) -> IncomingBody | None:
        call = self._find(call_id)
        return call.body if call else None

    def on_frame(self, kind: Kind, call_id: int, payload: bytearray) -> None:
        if kind is Kind.REQUEST:
            self._on_request(call_id, payload)
        elif kind is Kind.BODY:
            call = self._find(call_id)
            if call is not None:
                self._start_if_complete(call_id, call)
        elif kind is Kind.CANCEL:
            if self._find(call_id) is not None:
                call = self._calls.pop(call_id)
                if call.task is not None:
                    call.task.cancel()
        else:
            raise BadMessage(self.peer, f"a {kind.name} frame from a caller")

    def _find(self, call_id: int) -> _Incoming | None:
        """None for a call that is over: its frames may still be on their way."""
        if not 0 < call_id <= self._last_id:
            raise BadMessage(self.peer, f"a frame of call {call_id}, never made")
        return self._calls.get(call_id)

    def _on_request(self, call_id: int, payload: bytearray) -> None:
        if call_id <= self._last_id:
            raise BadMessage(self.peer, f"call {call_id} after call {self._last_id}")
        if len(self._calls) == MAX_CALLS:
            raise BadMessage(self.peer, f"more than {MAX_CALLS} calls at once")
        head = parse_head(self.peer, payload)
        self._last_id = call_id
        self._heartbeat_s = max(head.heartbeat_s, MIN_HEARTBEAT_S)
        if self._beat is None:
            self._beat = self._loop.call_later(self._heartbeat_s, self._send_heartbeat)
        if head.body_bytes > self._max_message_bytes:
            error = (
                f"a message of {head.body_bytes} bytes is over this peer's "
                f"tuning.max_message_bytes={self._max_message_bytes}"
            )
            self._start(call_id, self._answer_error(call_id, error))
        else:
            self._admit(call_id, head)

    def _admit(self, call_id: int, head: Head) -> None:
        try:
            refusal = self._service.admit(self.peer, head.header, head.specs)
        except Exception as error:
            self._start(call_id, self._answer_exception(call_id, error))
            return
        if refusal is not None:
            self._start(call_id, self._answer(call_id, refusal))
            return
        call = self._calls[call_id] = _Incoming(head, IncomingBody(head.specs))
        self._start_if_complete(call_id, call)

    def _start_if_complete(self, call_id: int, call: _Incoming) -> None:
        if call.head and call.body and not call.body.missing_bytes:
            message = Message(call.head.header, call.body.finish())
            self._start(call_id, self._handle(call_id, message))

    def _start(self, call_id: int, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._calls[call_id] = _Incoming(task=task)
        self.tasks.add(task)
        task.add_done_callback(lambda done: self._finished(call_id, done))

    def _finished(self, call_id: int, task: asyncio.Task) -> None:
        self.tasks.discard(task)
        call = self._calls.pop(call_id, None)
        if call is not None and task.cancelled():
            # Not on the caller's wish, which had removed the call: so it must be told.
            error = "the handler was cancelled"
            self._start(call_id, self._answer_error(call_id, error))

    async def _handle(self, call_id: int, message: Message) -> None:
        try:
            answer = await self._service.handle(self.peer, message)
        except Exception as error:
            await self._answer_exception(call_id, error)
        else:
            await self._answer(call_id, answer)

    async def _answer(self, call_id: int, message: Message) -> None:
        try:
            head, views = encode(message, max_bytes=self._max_message_bytes)
        except Exception as error:
            await self._answer_exception(call_id, error)
        else:
            if await self._write([frame(Kind.RESPONSE, call_id, head)]):
                for pieces in body_frames(call_id, views):
                    if not await self._write(pieces):
                        return

    async def _answer_exception(self, call_id: int, error: Exception) -> None:
        # A handler may pass on the complaint of a peer further down.
        if isinstance(error, BadMessage) and error.peer == self.peer:
            self.drop(error)
            return
        logger.error("Call of peer %s failed", self.peer, exc_info=error)
        await self._answer_error(call_id, f"{type(error).__name__}: {error}")

    async def _answer_error(self, call_id: int, text: str) -> None:
        payload = text.encode()[:MAX_ERROR_BYTES]
        await self._write([frame(Kind.ERROR, call_id, payload)])

    def _send_heartbeat(self) -> None:
        self._beat = None
        if self._calls:
            # With data queued, the caller gets its sign of life from that.
            if self._writable.is_set():
                self._write_now(Kind.HEARTBEAT, 0)
            self._beat = self._loop.call_later(self._heartbeat_s, self._send_heartbeat)
