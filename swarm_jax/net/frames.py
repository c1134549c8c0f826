"""Frames on a byte stream, without I/O: what is on the wire, and every check of it.

A frame is a fixed head (kind, call id, payload length, little-endian) and its payload.
A message is one REQUEST or RESPONSE frame (msgpack: header, array specs, number of body
bytes) and the arrays' raw little-endian bytes, one after the other, cut into BODY
frames of at most ``MAX_CHUNK_BYTES``, between which frames of other calls may stand.

Every length is checked before anything is allocated for it. What a peer may send wrong
raises ``BadMessage``; what our own side may pass wrong raises ``ValueError``.
"""

import enum
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr  # Of what a peer sent, a few words.
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from swarm_jax.errors import BadMessage
from swarm_jax.net.protocols import ArraySpec, Message, spec_of

MAX_CHUNK_BYTES = 256 * 1024
MAX_HEAD_BYTES = 1024 * 1024
MAX_ERROR_BYTES = 4096
MAX_DIMENSIONS = 32
MAX_DEPTH = 32
"""Of a header. Deeper ones unpack, but ``repr`` and the like run out of stack."""
FRAME_HEAD = struct.Struct("<BQI")


class Kind(enum.IntEnum):
    REQUEST = 1
    BODY = 2
    RESPONSE = 3
    HEARTBEAT = 4
    CANCEL = 5
    ERROR = 6


MAX_PAYLOAD_BYTES = {
    Kind.REQUEST: MAX_HEAD_BYTES,
    Kind.BODY: MAX_CHUNK_BYTES,
    Kind.RESPONSE: MAX_HEAD_BYTES,
    Kind.HEARTBEAT: 0,
    Kind.CANCEL: 0,
    Kind.ERROR: MAX_ERROR_BYTES,
}

# No bool: a byte other than 0 and 1 in one makes numpy miscount, and then miswrite.
DTYPES = {
    name: np.dtype(name)
    for name in (
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, slots=True)
class Head:
    """A REQUEST or RESPONSE frame that passed all checks.

    Attributes:
        header: The message's header.
        specs: dtype and shape of each array.
        body_bytes: Bytes of all arrays together.
        heartbeat_s: Period of heartbeats that the caller counts on (0 in a response).
    """

    header: Mapping[str, Any]
    specs: tuple[ArraySpec, ...]
    body_bytes: int
    heartbeat_s: float


def encode(
    message: Message, *, heartbeat_s: float = 0.0, max_bytes: int
) -> tuple[bytes, list[memoryview]]:
    """A message as the payload of its head and views of its arrays, not copied.

    Raises:
        ValueError: The message is too large, or has a dtype that does not travel.
    """
    arrays = [_travelling(array) for array in message.arrays]
    specs = [spec_of(array) for array in arrays]
    body_bytes = sum(array.nbytes for array in arrays)
    head = msgpack.packb([dict(message.header), specs, body_bytes, heartbeat_s])
    if len(head) > MAX_HEAD_BYTES:
        raise ValueError(
            f"a header of {len(head)} bytes is over the limit of {MAX_HEAD_BYTES}: "
            "large values travel as arrays"
        )
    if body_bytes > max_bytes:
        raise ValueError(
            f"a message of {body_bytes} bytes is over tuning.max_message_bytes="
            f"{max_bytes}: raise it on all peers"
        )
    return head, [_bytes_of(array) for array in arrays if array.nbytes]


def frame(kind: Kind, call_id: int, payload: bytes = b"") -> bytes:
    return FRAME_HEAD.pack(kind, call_id, len(payload)) + payload


def body_frames(
    call_id: int, views: Sequence[memoryview]
) -> Iterator[list[bytes | memoryview]]:
    """BODY frames over ``views``, each as pieces to be written one after the other."""
    pieces: list[bytes | memoryview] = []
    size = 0
    for view in views:
        start = 0
        while start < len(view):
            piece = view[start : start + MAX_CHUNK_BYTES - size]
            pieces.append(piece)
            start += len(piece)
            size += len(piece)
            if size == MAX_CHUNK_BYTES:
                yield [FRAME_HEAD.pack(Kind.BODY, call_id, size), *pieces]
                pieces, size = [], 0
    if pieces:
        yield [FRAME_HEAD.pack(Kind.BODY, call_id, size), *pieces]


def parse_head(peer: str, payload: bytes | bytearray) -> Head:
    """Checks the payload of a REQUEST or RESPONSE frame.

    The body's size is checked against its specs, not against a limit: a body that is
    only too large is refused, it is no reason to drop the peer.

    Raises:
        BadMessage: ``peer`` sent something malformed.
    """
    try:
        header, specs, body_bytes, heartbeat_s = msgpack.unpackb(
            payload, strict_map_key=False
        )
        _check_depth([header, specs], MAX_DEPTH)
        specs = tuple(_checked_spec(*spec) for spec in specs)
    except (ValueError, TypeError) as error:
        raise BadMessage(peer, f"malformed head: {error}") from error
    if not isinstance(header, dict) or not all(isinstance(key, str) for key in header):
        raise BadMessage(peer, "malformed head: the header is no dict of str keys")
    if type(heartbeat_s) is not float or not 0 <= heartbeat_s < math.inf:
        raise BadMessage(peer, f"malformed head: heartbeat_s={repr(heartbeat_s)}")
    described = sum(_nbytes(spec) for spec in specs)
    if type(body_bytes) is not int or body_bytes != described:
        raise BadMessage(
            peer, f"{repr(body_bytes)} body bytes announced, the specs make {described}"
        )
    return Head(header, specs, body_bytes, heartbeat_s)


class IncomingBody:
    """Preallocated arrays into which the bytes of a body are received.

    Each array has its own buffer: so all are aligned, and freed one by one.
    """

    def __init__(self, specs: Sequence[ArraySpec]):
        self._arrays = [np.empty(shape, DTYPES[name]) for name, shape in specs]
        self._views = [_bytes_of(array) for array in self._arrays if array.nbytes]
        self._views.reverse()
        self.missing_bytes = sum(len(view) for view in self._views)

    def room(self) -> memoryview:
        """Where the next bytes belong; never empty while bytes are missing."""
        return self._views[-1]

    def advance(self, count: int) -> None:
        """The first ``count`` bytes of ``room()`` have been filled."""
        self.missing_bytes -= count
        view = self._views.pop()
        if count < len(view):
            self._views.append(view[count:])

    def finish(self) -> list[np.ndarray]:
        """The complete arrays, read-only."""
        assert not self.missing_bytes
        for array in self._arrays:
            array.flags.writeable = False
        return self._arrays


def _travelling(array: np.ndarray) -> np.ndarray:
    name = array.dtype.name
    if name not in DTYPES:
        raise ValueError(f"dtype {name} does not travel: use one of {sorted(DTYPES)}")
    # asarray and not ascontiguousarray, which makes 0-d arrays 1-d.
    return np.asarray(array, dtype=DTYPES[name], order="C")


def _bytes_of(array: np.ndarray) -> memoryview:
    # Through uint8, since bfloat16 does not offer its buffer.
    return memoryview(array.reshape(-1).view(np.uint8))


def _checked_spec(name: Any, shape: Any) -> ArraySpec:
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"unknown dtype {repr(name)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"no shape: {repr(shape)}")
    if not all(type(size) is int and 0 <= size < 2**48 for size in shape):
        raise ValueError(f"no shape: {repr(shape)}")
    # numpy refuses (0, huge, huge), although it has no bytes.
    if math.prod(size for size in shape if size) * DTYPES[name].itemsize >= 2**48:
        raise ValueError(f"shape {repr(shape)} is too large")
    return name, tuple(shape)


def _check_depth(value: Any, left: int) -> None:
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(value, list | dict):
        if not left:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        for item in inner:
            if isinstance(item, list | dict):
                _check_depth(item, left - 1)


def _nbytes(spec: ArraySpec) -> int:
    name, shape = spec
    return math.prod(shape) * DTYPES[name].itemsize
