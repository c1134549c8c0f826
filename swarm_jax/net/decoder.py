"""Cuts a byte stream into frames, without I/O and without a second copy of bodies.

The owner asks for a buffer, fills some of it from its socket, and says how much. Within
a large BODY frame the buffer is the array itself; everything else passes through a
small scratch buffer, so that many small frames cost one system call.
"""

from typing import Protocol

from swarm_jax.errors import BadMessage
from swarm_jax.net.frames import (
    FRAME_HEAD,
    MAX_PAYLOAD_BYTES,
    IncomingBody,
    Kind,
)

SCRATCH_BYTES = 16 * 1024
_DROPPED = memoryview(bytearray(SCRATCH_BYTES))
"""Where unwanted bytes go, of all streams: nobody reads them."""


class FrameSink(Protocol):
    """Who acts on frames. Both methods may raise ``BadMessage``."""

    def body_of(self, call_id: int) -> IncomingBody | None:
        """Where the bytes of a BODY frame go; None drops them."""
        ...

    def on_frame(self, kind: Kind, call_id: int, payload: bytearray) -> None:
        """A frame is complete. The payload of a BODY frame is in its body already."""
        ...


class FrameDecoder:
    """Incremental parser of one direction of one stream.

    Args:
        peer: Who sends; named in errors.
        sink: Who acts on the frames.

    Attributes:
        frames: How many frames were complete so far.
    """

    def __init__(self, peer: str, sink: FrameSink):
        self._peer = peer
        self._sink = sink
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self.frames = 0
        self._direct = False
        self._head = bytearray()
        self._kind: Kind | None = None
        self._call_id = 0
        self._missing = self._filled = 0
        self._payload = bytearray()
        self._body: IncomingBody | None = None

    @property
    def is_inside_frame(self) -> bool:
        """Whether the rest of a frame is still to come."""
        return self._kind is not None or bool(self._head)

    def get_buffer(self) -> memoryview:
        """Where to put the next bytes of the stream; never empty."""
        if self._kind is not None:
            room = self._room()
            if len(room) >= SCRATCH_BYTES:
                self._direct = True
                return room
        self._direct = False
        return self._scratch

    def buffer_updated(self, count: int) -> None:
        """The first ``count`` bytes of the last buffer have been filled.

        Raises:
            BadMessage: The stream is malformed; this decoder is of no further use.
        """
        if self._direct:
            self._advance(count)
        else:
            self._consume(self._scratch[:count])

    def feed(self, data: bytes) -> None:
        """As if ``data`` had been received. Raises ``BadMessage``."""
        self._consume(memoryview(data))

    def _consume(self, data: memoryview) -> None:
        while data:
            if self._kind is None:
                count = min(FRAME_HEAD.size - len(self._head), len(data))
                self._head += data[:count]
                if len(self._head) == FRAME_HEAD.size:
                    kind, call_id, size = FRAME_HEAD.unpack(self._head)
                    self._head.clear()
                    self._begin(kind, call_id, size)
            else:
                room = self._room()
                count = min(len(room), len(data))
                room[:count] = data[:count]
                self._advance(count)
            data = data[count:]

    def _begin(self, number: int, call_id: int, size: int) -> None:
        try:
            kind = Kind(number)
        except ValueError as error:
            raise BadMessage(self._peer, f"unknown kind of frame {number}") from error
        if size > MAX_PAYLOAD_BYTES[kind]:
            raise BadMessage(self._peer, f"a {kind.name} frame of {size} bytes")
        if kind is Kind.BODY:
            if not size:
                raise BadMessage(self._peer, "an empty BODY frame")
            self._body = self._sink.body_of(call_id)
            if self._body is not None and size > self._body.missing_bytes:
                raise BadMessage(self._peer, "a body longer than announced")
        else:
            self._payload = bytearray(min(size, SCRATCH_BYTES))
        self._kind, self._call_id, self._missing = kind, call_id, size
        self._filled = 0
        if not size:
            self._advance(0)

    def _room(self) -> memoryview:
        if self._kind is not Kind.BODY:
            return memoryview(self._payload)[self._filled :]
        if self._body is None:
            return _DROPPED[: self._missing]
        return self._body.room()[: self._missing]

    def _grow(self) -> None:
        """Doubles a full payload: who announces a large head has to send it first."""
        if self._filled == len(self._payload):
            # Not in place: a view of it may be in use.
            self._payload = self._payload + bytes(min(self._missing, self._filled))

    def _advance(self, count: int) -> None:
        self._missing -= count
        self._filled += count
        if self._missing and self._kind is not Kind.BODY:
            self._grow()
        if self._kind is Kind.BODY and self._body is not None:
            self._body.advance(count)
        if self._missing:
            return
        kind, payload = self._kind, self._payload
        assert kind is not None
        self.frames += 1
        self._kind, self._payload, self._body = None, bytearray(), None
        self._sink.on_frame(kind, self._call_id, payload)
