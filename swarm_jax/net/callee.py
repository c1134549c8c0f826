"""The end of a stream that answers. ``wire`` says what both ends keep to."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from swarm_jax.errors import BadMessage
from swarm_jax.net.budget import Budget, Room
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
from swarm_jax.net.progress import STALL_S, Owed, Progress
from swarm_jax.net.protocols import Message, Service
from swarm_jax.net.wire import HEAD_WEIGHT, MAX_CALLS, MAX_TASKS, MIN_HEARTBEAT_S

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Incoming:
    """A call that is being received (``body``) or answered (``task``)."""

    id: int
    room: Room
    head: Head | None = None
    body: IncomingBody | None = None
    task: asyncio.Task | None = None

    @property
    def receiving(self) -> bool:
        return self.task is None


class Callee(Link):
    """The end of a stream that answers.

    Args:
        peer: The other end.
        service: What answers.
        max_message_bytes: Larger messages are refused.
        budget: Bounds what is held of requests and answers, of all streams together.
        busy: Answers a call that finds no room; None answers it with an error.
        stall_s: The peer is dropped when it owes something and nothing comes.
        on_bad: Called when the peer is dropped, to drop its other streams too.
        on_lost: Called once when the stream has ended, for whatever reason.
    """

    def __init__(
        self,
        peer: str,
        service: Service,
        *,
        max_message_bytes: int,
        budget: Budget | None = None,
        busy: Message | None = None,
        stall_s: float = STALL_S,
        on_bad: Callable[[], object] = lambda: None,
        on_lost: Callable[[], object] = lambda: None,
    ):
        super().__init__(peer, max_message_bytes, on_lost)
        self._budget = budget or Budget.for_messages(max_message_bytes)
        self._busy = busy
        self._stall_s = stall_s
        self._service = service
        self._on_bad = on_bad
        self._calls: dict[int, _Incoming] = {}
        self._last_id = 0
        self.heard_s = self._loop.time()
        self._heartbeat_s = MIN_HEARTBEAT_S
        self._beat: asyncio.TimerHandle | None = None
        self.tasks: set[asyncio.Task] = set()
        self._progress = Progress(self._owed, self._stalled, stall_s)

    @property
    def is_idle(self) -> bool:
        """Whether its end would harm nobody: no call is open."""
        return not self.tasks and not self._calls

    def _heard(self) -> None:
        self.heard_s = self._loop.time()

    def drop(self, error: BadMessage) -> None:
        super().drop(error)
        self._on_bad()

    def _on_lost(self, reason: str) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self._progress.stop()
        for call in self._calls.values():
            if call.receiving:
                call.room.release()
        self._calls.clear()
        for task in self.tasks:
            task.cancel()

    def _owed(self) -> list[Owed]:
        """What the peer must move on; of the bodies on their way, the oldest."""
        owed = [] if self._last_id else [("a first call", 0)]
        if not self._writable.is_set():
            owed.append((("reading", self._drained), self._sent_bytes))
        receiving = (call.id for call in self._calls.values() if call.receiving)
        if (call_id := next(receiving, None)) is not None:
            owed.append((("the body of call", call_id), self._received_bytes))
        elif self._decoder.is_inside_frame:
            owed.append((("frame", self._decoder.frames), self._received_bytes))
        return owed

    def _stalled(self, owed: object) -> None:
        self.drop(
            BadMessage(self.peer, f"stalled for {self._stall_s:g} s, owing {owed}")
        )

    def body_of(self, call_id: int) -> IncomingBody | None:
        call = self._find(call_id)
        return call.body if call else None

    def on_frame(self, kind: Kind, call_id: int, payload: bytearray) -> None:
        if kind is Kind.REQUEST:
            self._on_request(call_id, payload)
        elif kind is Kind.BODY:
            call = self._find(call_id)
            if call is not None:
                self._start_if_complete(call)
        elif kind is Kind.CANCEL:
            if self._find(call_id) is not None:
                call = self._calls.pop(call_id)
                if call.task is not None:
                    call.task.cancel()
                else:
                    call.room.release()
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
        if len(self._calls) == MAX_CALLS or len(self.tasks) >= MAX_TASKS:
            raise BadMessage(self.peer, f"more than {MAX_CALLS} calls at once")
        head = parse_head(self.peer, payload)
        self._last_id = call_id
        self._heartbeat_s = max(head.heartbeat_s, MIN_HEARTBEAT_S)
        if self._beat is None:
            self._beat = self._loop.call_later(self._heartbeat_s, self._send_heartbeat)
        weight = HEAD_WEIGHT * len(payload)
        if head.body_bytes > self._max_message_bytes:
            error = (
                f"a message of {head.body_bytes} bytes is over this peer's "
                f"tuning.max_message_bytes={self._max_message_bytes}"
            )
            call = self._refused(call_id)
            self._start(call, self._answer_error(call, error))
        elif room := self._budget.request(self.peer, weight + head.body_bytes):
            self._admit(_Incoming(call_id, room, head), head)
        else:
            call = self._refused(call_id)
            self._start(call, self._answer_busy(call))

    def _refused(self, call_id: int) -> _Incoming:
        """A call of which nothing is kept."""
        return _Incoming(call_id, Room(self._budget, self.peer, 0))

    def _admit(self, call: _Incoming, head: Head) -> None:
        try:
            refusal = self._service.admit(self.peer, head.header, head.specs)
        except BadMessage:
            call.room.release()
            raise
        except Exception as error:
            self._start(call, self._answer_exception(call, error))
            return
        if refusal is not None:
            self._start(call, self._answer(call, refusal))
            return
        call.body = IncomingBody(head.specs)
        self._calls[call.id] = call
        self._start_if_complete(call)

    def _start_if_complete(self, call: _Incoming) -> None:
        if call.head and call.body and not call.body.missing_bytes:
            message = Message(call.head.header, call.body.finish())
            self._start(call, self._handle(call, message))

    def _start(self, call: _Incoming, work: Coroutine[Any, Any, None]) -> None:
        call.head = call.body = None
        call.task = task = self._loop.create_task(work)
        self._calls[call.id] = call
        self.tasks.add(task)
        task.add_done_callback(lambda done: self._finished(call, done))

    def _finished(self, call: _Incoming, task: asyncio.Task) -> None:
        self.tasks.discard(task)
        call.room.release()
        open_ = self._calls.pop(call.id, None) is not None
        if open_ and task.cancelled():
            # Not on the caller's wish, which had removed the call: so it must be told.
            error = "the handler was cancelled"
            self._start(call, self._answer_error(call, error))

    async def _handle(self, call: _Incoming, message: Message) -> None:
        try:
            answer = await self._service.handle(self.peer, message)
        except Exception as error:
            await self._answer_exception(call, error)
        else:
            del message
            await self._answer(call, answer)

    async def _answer(self, call: _Incoming, message: Message) -> None:
        try:
            head, views = encode(message, max_bytes=self._max_message_bytes)
        except Exception as error:
            await self._answer_exception(call, error)
            return
        call.room.release()
        size = HEAD_WEIGHT * len(head) + sum(len(view) for view in views)
        room = self._budget.request(self.peer, size)
        if room is None:
            await self._answer_busy(call)
            return
        call.room = room
        await self._write_answer(call, head, views)

    async def _answer_busy(self, call: _Incoming) -> None:
        if self._busy is None:
            await self._answer_error(call, "busy: no room for this message")
        else:
            head, views = encode(self._busy, max_bytes=self._max_message_bytes)
            await self._write_answer(call, head, views)

    async def _write_answer(
        self, call: _Incoming, head: bytes, views: list[memoryview]
    ) -> None:
        async with self._in_order(views):
            if await self._write([frame(Kind.RESPONSE, call.id, head)]):
                for pieces in body_frames(call.id, views):
                    if not await self._write(pieces):
                        return

    async def _answer_exception(self, call: _Incoming, error: Exception) -> None:
        # A handler may pass on the complaint of a peer further down.
        if isinstance(error, BadMessage) and error.peer == self.peer:
            self.drop(error)
            return
        logger.error("Call of peer %s failed", self.peer, exc_info=error)
        await self._answer_error(call, f"{type(error).__name__}: {error}")

    async def _answer_error(self, call: _Incoming, text: str) -> None:
        payload = text.encode(errors="replace")[:MAX_ERROR_BYTES]
        await self._write([frame(Kind.ERROR, call.id, payload)])

    def _send_heartbeat(self) -> None:
        self._beat = None
        if self._calls:
            # With data queued, the caller gets its sign of life from that.
            if self._writable.is_set():
                self._write_now(Kind.HEARTBEAT, 0)
            self._beat = self._loop.call_later(self._heartbeat_s, self._send_heartbeat)
