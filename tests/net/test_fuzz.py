"""Whatever a peer sends: it is understood, or its connection ends. Nothing else."""

import asyncio
import socket

import msgpack
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_jax.errors import BadMessage, PeerError
from swarm_jax.net.callee import Callee
from swarm_jax.net.caller import Caller
from swarm_jax.net.decoder import FrameDecoder
from swarm_jax.net.frames import (
    DTYPES,
    FRAME_HEAD,
    IncomingBody,
    Kind,
    body_frames,
    encode,
    frame,
    parse_head,
)
from swarm_jax.net.protocols import Message

MAX_BYTES = 1 << 20

replayable = settings(deadline=None, derandomize=True)


def message_frames(kind: Kind, call_id: int, message: Message) -> bytes:
    head, views = encode(message, heartbeat_s=1.0, max_bytes=MAX_BYTES)
    pieces = [frame(kind, call_id, head)]
    for more in body_frames(call_id, views):
        pieces += more
    return b"".join(pieces)


dtypes = st.sampled_from([*DTYPES, "bool", "object", "", "f4", "float128"]) | st.text()
sizes = st.integers(-2, 5) | st.integers(-(2**63), 2**64 - 1)
specs = st.tuples(dtypes, st.lists(sizes, max_size=4)) | st.integers(0, 9) | st.text()
heads = st.tuples(
    st.dictionaries(st.text(max_size=5) | st.integers(0, 9), st.integers(0, 9)),
    st.lists(specs, max_size=3),
    st.integers(0, 100) | st.integers(-(2**63), 2**64 - 1) | st.text(),
    st.floats() | st.integers(0, 9),
).map(msgpack.packb)
kinds = st.sampled_from([*Kind, 0, 7, 255])
call_ids = st.integers(0, 3) | st.just(2**64 - 1)
odd_frames = st.builds(
    lambda kind, call_id, payload, lie: (
        FRAME_HEAD.pack(kind, call_id, max(0, len(payload) + lie)) + payload
    ),
    kinds,
    call_ids,
    heads | st.binary(max_size=50),
    st.sampled_from([0, 0, 0, 1, -1, 1000]),
)
good_frames = st.builds(
    lambda kind, call_id, size: message_frames(
        kind, call_id, Message({}, [np.zeros(size, np.int8)])
    ),
    st.sampled_from([Kind.REQUEST, Kind.RESPONSE]),
    st.integers(1, 3),
    st.integers(0, 3),
)
streams = st.lists(good_frames | odd_frames, max_size=6).map(b"".join) | st.binary()


class Sink:
    """Takes bodies in as both ends do, and has no opinion on the order of frames."""

    def __init__(self):
        self.bodies: dict[int, IncomingBody] = {}

    def body_of(self, call_id):
        return self.bodies.get(call_id)

    def on_frame(self, kind, call_id, payload):
        if kind in (Kind.REQUEST, Kind.RESPONSE):
            head = parse_head("peer", payload)
            if head.body_bytes <= MAX_BYTES:
                self.bodies[call_id] = IncomingBody(head.specs)
                assert self.bodies[call_id].missing_bytes == head.body_bytes


@settings(replayable, max_examples=300)
@given(streams, st.integers(1, 100))
def test_the_decoder_understands_or_complains(data, step):
    decoder = FrameDecoder("peer", Sink())
    try:
        for start in range(0, len(data), step):
            decoder.feed(data[start : start + step])
    except BadMessage as error:
        assert error.peer == "peer"


class EchoService:
    def admit(self, sender, header, specs):
        return None

    async def handle(self, sender, message):
        return message


async def attack(link, data: bytes, work=None) -> None:
    """Sends ``data`` to ``link`` and ends the stream; fails on any other exception."""
    loop = asyncio.get_running_loop()
    unexpected = []
    loop.set_exception_handler(lambda loop, context: unexpected.append(context))
    ours, theirs = socket.socketpair()
    await link.attach(*await asyncio.open_connection(sock=ours))
    working = asyncio.ensure_future(work) if work else None
    await asyncio.sleep(0)
    _, writer = await asyncio.open_connection(sock=theirs)
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(10):
        while not link.lost:
            await asyncio.sleep(0)
        if working:
            await asyncio.wait({working})
            assert working.exception() is None, working.exception()
    writer.transport.abort()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert not unexpected


@settings(replayable, max_examples=100)
@given(data=streams)
def test_a_callee_survives(session_runner, data):
    async def case():
        callee = Callee("peer", EchoService(), max_message_bytes=MAX_BYTES)
        await attack(callee, data)

    session_runner.run(case())


@settings(replayable, max_examples=100)
@given(data=streams)
def test_a_call_ends_with_an_answer_or_an_error_of_the_peer(session_runner, data):
    async def case():
        caller = Caller("peer", heartbeat_s=10, max_message_bytes=MAX_BYTES)

        async def call():
            try:
                answer = await caller.call(Message({}), timeout_s=60)
                assert isinstance(answer, Message)
            except PeerError as error:
                assert error.peer == "peer"

        await attack(caller, data, call())

    session_runner.run(case())
