"""Frames, their checks, the decoder: what is right arrives, what is wrong is told."""

import tracemalloc

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from swarm_jax.errors import BadMessage
from swarm_jax.net.decoder import FrameDecoder
from swarm_jax.net.frames import (
    FRAME_HEAD,
    MAX_CHUNK_BYTES,
    MAX_HEAD_BYTES,
    MAX_PAYLOAD_BYTES,
    Head,
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

headers = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.floats(allow_nan=False)
        | st.text(max_size=5)
        | st.binary(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)
arrays = npst.arrays(
    st.sampled_from(["int8", "float16", "float32", "float64", "uint16", "int64"]),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=20),
)
messages = st.builds(Message, headers, st.lists(arrays, max_size=4))


def stream_of(message: Message, call_id: int = 1) -> bytes:
    """A request as its bytes."""
    head, views = encode(message, heartbeat_s=1.0, max_bytes=MAX_BYTES)
    pieces = [frame(Kind.REQUEST, call_id, head)]
    for more in body_frames(call_id, views):
        pieces += more
    return b"".join(pieces)


class Sink:
    """Receives requests as a callee does."""

    def __init__(self):
        self.heads: dict[int, Head] = {}
        self.bodies: dict[int, IncomingBody] = {}

    def body_of(self, call_id):
        return self.bodies.get(call_id)

    def on_frame(self, kind, call_id, payload):
        if kind is Kind.REQUEST:
            head = self.heads[call_id] = parse_head("peer", payload)
            if head.body_bytes <= MAX_BYTES:
                self.bodies[call_id] = IncomingBody(head.specs)

    def message(self, call_id) -> Message:
        return Message(self.heads[call_id].header, self.bodies[call_id].finish())


def receive(decoder: FrameDecoder, data: bytes, sizes) -> None:
    """Fills the decoder's buffers as a socket would, ``sizes`` bytes at a time."""
    left = memoryview(data)
    while left:
        buffer = decoder.get_buffer()
        count = min(len(buffer), len(left), next(sizes))
        buffer[:count] = left[:count]
        decoder.buffer_updated(count)
        left = left[count:]


def forever(values):
    while True:
        yield from values


@replayable
@given(
    st.lists(messages, min_size=1, max_size=3),
    st.lists(st.integers(1, 40_000), min_size=1, max_size=5),
)
def test_messages_survive_any_cutting_of_the_stream(sent, sizes):
    sink = Sink()
    data = b"".join(stream_of(message, i) for i, message in enumerate(sent))
    receive(FrameDecoder("peer", sink), data, forever(sizes))
    for call_id, message in enumerate(sent):
        received = sink.message(call_id)
        assert received.header == message.header
        assert len(received.arrays) == len(message.arrays)
        for array, original in zip(received.arrays, message.arrays, strict=True):
            assert array.dtype == original.dtype
            assert array.shape == original.shape
            assert array.tobytes() == original.tobytes()
            assert not array.flags.writeable


@replayable
@given(st.integers(0, 3), st.lists(st.integers(99, 300_000), min_size=1, max_size=3))
def test_large_arrays_are_received_in_place(odd_bytes, sizes):
    arrays = [
        np.arange(odd_bytes, dtype=np.int8),
        np.arange(150_000, dtype=np.float32),
        np.array(3, ml_dtypes.bfloat16),
    ]
    sink = Sink()
    data = stream_of(Message({}, arrays))
    receive(FrameDecoder("peer", sink), data, forever(sizes))
    for array, original in zip(sink.message(1).arrays, arrays, strict=True):
        assert array.tobytes() == original.tobytes()
        assert array.flags.aligned


def test_chunks_are_bounded_and_span_arrays():
    arrays = [np.zeros(MAX_CHUNK_BYTES // 2, np.uint8)] * 5
    _, views = encode(Message({}, arrays), max_bytes=MAX_BYTES)
    sizes = [sum(map(len, pieces[1:])) for pieces in body_frames(1, views)]
    assert sizes == [MAX_CHUNK_BYTES, MAX_CHUNK_BYTES, MAX_CHUNK_BYTES // 2]


def test_bodies_are_sent_without_a_copy():
    array = np.arange(1000, dtype=ml_dtypes.bfloat16)
    _, [view] = encode(Message({}, [array]), max_bytes=MAX_BYTES)
    assert np.shares_memory(np.asarray(view), array.view(np.uint8))


@pytest.mark.parametrize("array", [np.arange(6, dtype=">i4"), np.eye(4)[:, ::2]])
def test_arrays_of_another_layout_are_sent_in_ours(array):
    sink = Sink()
    FrameDecoder("peer", sink).feed(stream_of(Message({}, [array])))
    np.testing.assert_array_equal(sink.message(1).arrays[0], array)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (Message({}, [np.zeros(2, bool)]), "dtype bool does not travel"),
        (Message({}, [np.zeros(2, object)]), "dtype object does not travel"),
        (Message({}, [np.zeros(MAX_BYTES + 1, np.int8)]), "max_message_bytes"),
        (Message({"key": b"x" * MAX_HEAD_BYTES}), "header of .* bytes"),
    ],
)
def test_what_cannot_be_sent_is_the_senders_mistake(message, complaint):
    with pytest.raises(ValueError, match=complaint):
        encode(message, max_bytes=MAX_BYTES)


def head(header=None, specs=(), body_bytes=0, heartbeat_s=1.0, more=()) -> bytes:
    header = {} if header is None else header
    return msgpack.packb([header, list(specs), body_bytes, heartbeat_s, *more])


MALFORMED_HEADS = {
    "empty": b"",
    "no msgpack": b"\xc1",
    "cut off": head()[:-1],
    "too long": head() + b"\x00",
    "no list": msgpack.packb(7),
    "too few parts": msgpack.packb([{}, [], 0]),
    "too many parts": head(more=[1]),
    "header is a list": head(header=[1]),
    "header has a number as key": head(header={1: 2}),
    "header has a list as key": b"\x94\x81\x90\x00\x90\x00\xca\x00\x00\x00\x00",
    "no UTF-8": b"\x94\x81\xa1\xff\x00\x90\x00\xca\x00\x00\x00\x00",
    "nested a million deep": b"\x94" + b"\x91" * (MAX_HEAD_BYTES - 1),
    "heartbeat is no number": head(heartbeat_s="1"),
    "heartbeat is negative": head(heartbeat_s=-1.0),
    "heartbeat is infinite": head(heartbeat_s=float("inf")),
    "heartbeat is NaN": head(heartbeat_s=float("nan")),
    "specs are a number": msgpack.packb([{}, 5, 0, 1.0]),
    "spec is a number": head(specs=[5]),
    "spec without shape": head(specs=[["float32"]]),
    "unknown dtype": head(specs=[["float33", [1]]], body_bytes=4),
    "object dtype": head(specs=[["object", [1]]], body_bytes=8),
    "bool dtype": head(specs=[["bool", [1]]], body_bytes=1),
    "dtype is a number": head(specs=[[4, [1]]], body_bytes=4),
    "structured dtype": head(specs=[["f4,f4", [1]]], body_bytes=8),
    "shape is a number": head(specs=[["float32", 1]], body_bytes=4),
    "negative dimension": head(specs=[["float32", [-1]]], body_bytes=-4),
    "negative dimensions": head(specs=[["float32", [-1, -1]]], body_bytes=4),
    "dimension is a float": head(specs=[["float32", [1.0]]], body_bytes=4),
    "dimension is a bool": head(specs=[["float32", [True]]], body_bytes=4),
    "huge and empty": head(specs=[["int8", [0, 2**47, 2**47]]]),
    "huge": head(specs=[["int8", [2**63]]], body_bytes=2**63),
    "many dimensions": head(specs=[["int8", [1] * 33]], body_bytes=1),
    "fewer bytes than described": head(specs=[["float32", [2]]], body_bytes=4),
    "more bytes than described": head(specs=[["float32", [2]]], body_bytes=12),
    "bytes without specs": head(body_bytes=1),
    "body bytes is a float": head(body_bytes=0.0),
    "body bytes is a bool": head(body_bytes=False),
}


@pytest.mark.parametrize("payload", MALFORMED_HEADS.values(), ids=MALFORMED_HEADS)
def test_malformed_heads_are_told(payload):
    with pytest.raises(BadMessage) as caught:
        parse_head("peer", payload)
    assert caught.value.peer == "peer"


MALFORMED_STREAMS = {
    "kind 0": FRAME_HEAD.pack(0, 1, 0),
    "kind 255": FRAME_HEAD.pack(255, 1, 0),
    **{
        f"{kind.name} too long": FRAME_HEAD.pack(kind, 1, size + 1)
        for kind, size in MAX_PAYLOAD_BYTES.items()
    },
    "4 GiB": FRAME_HEAD.pack(Kind.BODY, 1, 2**32 - 1),
    "empty BODY": FRAME_HEAD.pack(Kind.BODY, 1, 0),
    "body longer than announced": frame(
        Kind.REQUEST, 1, head(specs=[["int8", [3]]], body_bytes=3)
    )
    + frame(Kind.BODY, 1, bytes(4)),
}


@pytest.mark.parametrize("data", MALFORMED_STREAMS.values(), ids=MALFORMED_STREAMS)
def test_malformed_streams_are_told_before_memory_is_taken(data):
    decoder = FrameDecoder("peer", Sink())
    tracemalloc.start()
    with pytest.raises(BadMessage):
        decoder.feed(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 200_000
