"""Both ends of a stream, over socket pairs: rules that the contract cannot see."""

import asyncio
import socket
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from swarm_jax.errors import BadMessage, PeerLost, PeerStalled, RemoteError
from swarm_jax.net.callee import Callee
from swarm_jax.net.caller import Caller
from swarm_jax.net.frames import (
    FRAME_HEAD,
    MAX_CHUNK_BYTES,
    Kind,
    body_frames,
    encode,
    frame,
)
from swarm_jax.net.link import Link
from swarm_jax.net.protocols import Message
from swarm_jax.net.wire import MAX_CALLS

MAX_BYTES = 64 * 1024 * 1024
HEARTBEAT_S = 0.3


class Raw:
    """The far end of a stream, without any manners."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def write(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def read(self) -> tuple[Kind, int, bytes]:
        """The next frame that is no heartbeat."""
        while True:
            head = await self.reader.readexactly(FRAME_HEAD.size)
            kind, call_id, size = FRAME_HEAD.unpack(head)
            payload = await self.reader.readexactly(size)
            if kind != Kind.HEARTBEAT:
                return Kind(kind), call_id, payload


def head_of(message: Message, *, heartbeat_s=HEARTBEAT_S) -> bytes:
    return encode(message, heartbeat_s=heartbeat_s, max_bytes=1 << 40)[0]


def request(call_id=1, message=None, **settings) -> bytes:
    return frame(Kind.REQUEST, call_id, head_of(message or Message({}), **settings))


def response(call_id=1, message=None) -> bytes:
    return frame(Kind.RESPONSE, call_id, head_of(message or Message({})))


def bodies_of(call_id: int, message: Message) -> list[bytes]:
    _, views = encode(message, max_bytes=1 << 40)
    return [b"".join(pieces) for pieces in body_frames(call_id, views)]


async def open_pair():
    ends = socket.socketpair()
    return [await asyncio.open_connection(sock=end) for end in ends]


@pytest.fixture
def wire(runner, make_service):
    """Makes ends of streams, and closes them after the test."""
    links = []

    async def callee_and_raw(service=None, **settings):
        ours, theirs = await open_pair()
        settings = {"max_message_bytes": MAX_BYTES, **settings}
        callee = Callee("raw", service or make_service(), **settings)
        await callee.attach(*ours)
        links.append(callee)
        links.append(theirs[1])
        return callee, Raw(*theirs)

    async def caller_and_raw(**settings):
        ours, theirs = await open_pair()
        settings = {
            "heartbeat_s": HEARTBEAT_S,
            "max_message_bytes": MAX_BYTES,
            **settings,
        }
        caller = Caller("raw", **settings)
        await caller.attach(*ours)
        links.append(caller)
        links.append(theirs[1])
        return caller, Raw(*theirs)

    async def caller_and_callee(service):
        ours, theirs = await open_pair()
        caller = Caller("callee", heartbeat_s=HEARTBEAT_S, max_message_bytes=MAX_BYTES)
        callee = Callee("caller", service, max_message_bytes=MAX_BYTES)
        await caller.attach(*ours)
        await callee.attach(*theirs)
        links.append(caller)
        links.append(callee)
        return caller, callee

    yield SimpleNamespace(
        **{f.__name__: f for f in (callee_and_raw, caller_and_raw, caller_and_callee)}
    )

    async def close():
        for end in links:
            end.abort() if isinstance(end, Link) else end.transport.abort()
        await asyncio.sleep(0)

    runner.run(close())


LARGE = Message({"do": "refuse"}, [np.zeros(32 * 1024 * 1024, np.uint8)])


async def test_a_refused_body_is_dropped_without_being_stored(wire):
    _, raw = await wire.callee_and_raw()
    tracemalloc.start()
    raw.write(request(1, LARGE))
    kind, call_id, _ = await raw.read()
    assert (kind, call_id) == (Kind.RESPONSE, 1)
    for body in bodies_of(1, Message({}, [LARGE.arrays[0][: 4 * 1024 * 1024]])):
        raw.write(body)
        await raw.writer.drain()
    raw.write(request(2, Message({"do": "echo"})))
    assert (await raw.read())[:2] == (Kind.RESPONSE, 2)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The raw end's own buffers are in this, the 32 MB announced are not.
    assert peak_bytes < 16 * 1024 * 1024


async def test_a_caller_stops_sending_when_it_has_its_answer(wire):
    caller, raw = await wire.caller_and_raw()
    call = asyncio.ensure_future(caller.call(LARGE, timeout_s=20))
    assert (await raw.read())[0] is Kind.REQUEST
    raw.write(response())
    received = 0
    while not call.done():
        received += len(await raw.reader.read(64 * 1024))
    assert (await call).header == {}
    assert received < 4 * 1024 * 1024


async def test_a_message_that_is_too_large_is_refused_not_punished(wire):
    service_limit = {"max_message_bytes": 1000}
    callee, raw = await wire.callee_and_raw(**service_limit)
    raw.write(request(1, Message({}, [np.zeros(1001, np.int8)])))
    kind, call_id, text = await raw.read()
    assert (kind, call_id) == (Kind.ERROR, 1)
    assert b"tuning.max_message_bytes=1000" in text
    raw.write(request(2))
    assert (await raw.read())[:2] == (Kind.RESPONSE, 2)
    assert not callee.lost


async def test_heartbeats_begin_with_the_head_at_the_callers_period(wire):
    _, raw = await wire.callee_and_raw()
    loop = asyncio.get_running_loop()
    message = Message({"do": "echo"}, [np.zeros(10, np.int8)])
    started_s = loop.time()
    raw.write(request(1, message, heartbeat_s=0.05))
    for _ in range(3):
        beat = await raw.reader.readexactly(FRAME_HEAD.size)
        assert FRAME_HEAD.unpack(beat) == (Kind.HEARTBEAT, 0, 0)
    assert 0.14 < loop.time() - started_s < 5
    raw.write(*bodies_of(1, message))
    assert (await raw.read())[:2] == (Kind.RESPONSE, 1)
    assert (await raw.read())[0] is Kind.BODY


async def test_an_idle_stream_is_silent(wire):
    _, raw = await wire.callee_and_raw()
    raw.write(request(1, heartbeat_s=0.02))
    assert (await raw.read())[:2] == (Kind.RESPONSE, 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await raw.reader.readexactly(1)


async def test_silence_is_noticed_while_the_body_is_being_sent(wire):
    caller, _ = await wire.caller_and_raw()
    with pytest.raises(PeerStalled):
        await caller.call(LARGE, timeout_s=60)
    assert caller.lost


async def test_an_idle_stream_is_not_given_up(wire):
    caller, raw = await wire.caller_and_raw(heartbeat_s=0.05)
    for call_id in (1, 2):
        call = asyncio.ensure_future(caller.call(Message({}), timeout_s=20))
        assert (await raw.read())[:2] == (Kind.REQUEST, call_id)
        raw.write(response(call_id))
        await call
        # Longer than the silence that a call in flight would bear.
        await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0.2))])


async def test_small_calls_pass_large_ones(wire, make_service):
    caller, callee = await wire.caller_and_callee(make_service())
    large = Message({"do": "echo"}, LARGE.arrays)
    sending = asyncio.ensure_future(caller.call(large, timeout_s=60))
    await caller.call(Message({"do": "echo"}), timeout_s=60)
    assert not sending.done()
    assert (await sending).arrays[0].nbytes == LARGE.arrays[0].nbytes


THREE_FRAMES = Message({"do": "echo"}, [np.zeros(3 * MAX_CHUNK_BYTES, np.uint8)])


async def test_large_requests_follow_each_other(wire):
    caller, raw = await wire.caller_and_raw()
    calls = [
        asyncio.ensure_future(caller.call(THREE_FRAMES, timeout_s=20)) for _ in "abc"
    ]
    seen = [await raw.read() for _ in range(3 * 4)]
    assert [call_id for _, call_id, _ in seen] == [1] * 4 + [2] * 4 + [3] * 4
    for call in calls:
        call.cancel()


async def test_large_answers_follow_each_other(wire, make_service):
    _, raw = await wire.callee_and_raw(make_service())
    for call_id in (1, 2, 3):
        raw.write(request(call_id, THREE_FRAMES), *bodies_of(call_id, THREE_FRAMES))
    seen = [await raw.read() for _ in range(3 * 4)]
    assert [call_id for _, call_id, _ in seen] == [1] * 4 + [2] * 4 + [3] * 4


async def test_a_large_call_that_is_cancelled_gives_its_turn_to_the_next(wire):
    caller, raw = await wire.caller_and_raw()
    calls = [asyncio.ensure_future(caller.call(LARGE, timeout_s=20)) for _ in "ab"]
    next_ = asyncio.ensure_future(caller.call(THREE_FRAMES, timeout_s=20))
    assert (await raw.read())[:2] == (Kind.REQUEST, 1)
    for call in calls:
        call.cancel()
    while (seen := await raw.read())[1] == 1:
        assert seen[0] in (Kind.BODY, Kind.CANCEL)
    assert seen[:2] == (Kind.REQUEST, 2), "the second was never sent"
    next_.cancel()


async def test_large_calls_that_wait_fail_with_the_stream(wire):
    caller, raw = await wire.caller_and_raw()
    calls = [asyncio.ensure_future(caller.call(LARGE, timeout_s=20)) for _ in "abc"]
    await raw.read()
    raw.writer.transport.abort()
    for call in calls:
        with pytest.raises(PeerLost):
            await call


async def test_nothing_more_is_written_once_a_write_has_failed(wire, caplog):
    """asyncio complains of each such write in the log, where it helps nobody."""
    caller, raw = await wire.caller_and_raw()
    calls = [
        asyncio.ensure_future(caller.call(Message({}), timeout_s=20)) for _ in range(20)
    ]
    await raw.read()
    raw.writer.transport.abort()
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert caplog.messages == []


async def test_a_caller_waits_when_too_many_calls_are_open(wire, make_service, until):
    service = make_service()
    caller, _ = await wire.caller_and_callee(service)
    message = Message({"do": "wait", "seconds": 0.01})
    await asyncio.gather(
        *(caller.call(message, timeout_s=60) for _ in range(3 * MAX_CALLS))
    )
    assert service.handled == 3 * MAX_CALLS


async def test_a_handler_that_is_cancelled_answers_its_caller(
    wire, make_service, until
):
    service = make_service()
    caller, callee = await wire.caller_and_callee(service)
    call = asyncio.ensure_future(caller.call(Message({"do": "hang"}), timeout_s=60))
    await until(lambda: service.hanging)
    for task in callee.tasks:
        task.cancel()
    with pytest.raises(RemoteError, match="cancelled"):
        await call


async def test_an_answer_that_cannot_be_sent_is_an_error(wire):
    class Wrong:
        def admit(self, sender, header, specs):
            return None

        async def handle(self, sender, message):
            return Message({}, [np.zeros(1, object)])

    caller, _ = await wire.caller_and_callee(Wrong())
    with pytest.raises(RemoteError, match="does not travel"):
        await caller.call(Message({}), timeout_s=60)


async def test_a_door_that_fails_is_an_error(wire):
    class Wrong:
        def admit(self, sender, header, specs):
            raise KeyError("no such header")

    caller, _ = await wire.caller_and_callee(Wrong())
    with pytest.raises(RemoteError, match="no such header"):
        await caller.call(Message({}), timeout_s=60)


@pytest.mark.parametrize("cut", [5, 30, -1])
async def test_half_a_message_is_never_handled(wire, make_service, until, cut):
    service = make_service()
    callee, raw = await wire.callee_and_raw(service)
    message = Message({"do": "echo"}, [np.zeros(100, np.int8)])
    data = request(1, message) + b"".join(bodies_of(1, message))
    raw.write(data[:cut])
    raw.writer.write_eof()
    await until(lambda: callee.lost)
    assert service.handled == 0


async def test_what_came_before_a_link_was_attached_counts(make_service, until):
    service = make_service()
    ours, theirs = await open_pair()
    lost = []
    callee = Callee(
        "raw",
        service,
        max_message_bytes=MAX_BYTES,
        on_lost=lambda: lost.append(True),
    )
    theirs[1].write(request(1, Message({"do": "echo"})))
    theirs[1].write_eof()
    # Until asyncio's reader has seen the end of the stream.
    await until(lambda: ours[0]._eof)
    await callee.attach(*ours)
    await until(lambda: lost)
    assert len(service.admitted) == 1
    theirs[1].transport.abort()
    await asyncio.sleep(0)


VIOLATIONS_OF_CALLERS = {
    "call id 0": [request(0)],
    "a call id again": [request(2), request(2)],
    "an earlier call id": [request(2), request(1)],
    "body of no call": [frame(Kind.BODY, 1, b"x")],
    "cancel of no call": [frame(Kind.CANCEL, 1)],
    "a response": [request(1), response(1)],
    "a heartbeat": [frame(Kind.HEARTBEAT, 0)],
    "an error": [request(1), frame(Kind.ERROR, 1)],
    "too many calls": [
        request(i, Message({"do": "hang"})) for i in range(1, MAX_CALLS + 2)
    ],
}


@pytest.mark.parametrize(
    "frames", VIOLATIONS_OF_CALLERS.values(), ids=VIOLATIONS_OF_CALLERS
)
async def test_violations_of_a_caller_drop_it(wire, until, caplog, frames):
    dropped = []
    callee, raw = await wire.callee_and_raw(on_bad=lambda: dropped.append(True))
    raw.write(*frames)
    await until(lambda: callee.lost)
    assert dropped
    assert "Dropped the connection of peer raw" in caplog.text


async def test_frames_of_calls_that_are_over_are_dropped(wire):
    callee, raw = await wire.callee_and_raw()
    raw.write(request(5), frame(Kind.BODY, 3, b"x"), frame(Kind.CANCEL, 4))
    assert (await raw.read())[:2] == (Kind.RESPONSE, 5)
    raw.write(frame(Kind.CANCEL, 5), frame(Kind.BODY, 5, b"x"), request(6))
    assert (await raw.read())[:2] == (Kind.RESPONSE, 6)
    assert not callee.lost


WITH_BODY = Message({}, [np.zeros(3, np.int8)])

VIOLATIONS_OF_CALLEES = {
    "a request": [request(1)],
    "a cancel": [frame(Kind.CANCEL, 1)],
    "answer to call 0": [response(0)],
    "answer to a call never made": [response(2)],
    "body of a call never made": [frame(Kind.BODY, 2, b"x")],
    "error of a call never made": [frame(Kind.ERROR, 2)],
    "two answers": [response(1, WITH_BODY), response(1, WITH_BODY)],
    "too much body": [response(1, WITH_BODY), frame(Kind.BODY, 1, b"xxxx")],
    "too large": [response(1, Message({}, [np.zeros(MAX_BYTES + 1, np.int8)]))],
    "no msgpack": [frame(Kind.RESPONSE, 1, b"\xc1")],
}


@pytest.mark.parametrize(
    "frames", VIOLATIONS_OF_CALLEES.values(), ids=VIOLATIONS_OF_CALLEES
)
async def test_violations_of_a_callee_end_its_calls(wire, frames):
    caller, raw = await wire.caller_and_raw()
    call = asyncio.ensure_future(caller.call(Message({}), timeout_s=20))
    await raw.read()
    raw.write(*frames)
    with pytest.raises(BadMessage) as caught:
        await call
    assert caught.value.peer == "raw"
    with pytest.raises(PeerLost):
        await caller.call(Message({}), timeout_s=20)


async def test_late_answers_to_a_cancelled_call_are_dropped(wire):
    caller, raw = await wire.caller_and_raw()
    call = asyncio.ensure_future(caller.call(Message({}), timeout_s=20))
    await raw.read()
    call.cancel()
    assert (await raw.read())[:2] == (Kind.CANCEL, 1)
    raw.write(response(1, WITH_BODY), frame(Kind.BODY, 1, b"xxx"))
    raw.write(frame(Kind.ERROR, 1))
    call = asyncio.ensure_future(caller.call(Message({"second": 2}), timeout_s=20))
    assert (await raw.read())[:2] == (Kind.REQUEST, 2)
    raw.write(response(2, Message({"answer": 2})))
    assert (await call).header == {"answer": 2}


async def test_a_call_cancelled_before_its_turn_leaves_no_trace(wire):
    caller, raw = await wire.caller_and_raw()
    large = asyncio.ensure_future(caller.call(LARGE, timeout_s=20))
    assert (await raw.read())[:2] == (Kind.REQUEST, 1)
    waiting = asyncio.ensure_future(caller.call(Message({}), timeout_s=20))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    large.cancel()
    while (seen := await raw.read())[0] is Kind.BODY:
        assert seen[1] == 1
    assert seen[:2] == (Kind.CANCEL, 1)
