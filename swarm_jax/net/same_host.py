"""Byte streams between processes of one user on one host, past the p2p daemons.

A peer listens on an abstract Unix socket whose name follows from its peer id: others
find out by connecting whether it is on their host, at no cost where it is not. The name
proves nothing. So a stream is taken from processes of the same user only, and each end
shows a secret that the other end could only know as the peer that it says it is: both
have been handed out over an authenticated connection (``Introduction``).

The kernel removes such a socket with its process, however that ends.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

SECRET_BYTES = 32
HANDSHAKE_S = 5.0
BUFFER_BYTES = 1024 * 1024
"""Of the sender's end of a stream: a few chunks. Systems may allow less."""
IS_AVAILABLE = hasattr(socket, "SO_PEERCRED")
"""Abstract sockets and their owners are Linux'."""
_CREDENTIALS = struct.Struct("3i")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Take = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]

logger = logging.getLogger(__name__)


def _secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


@dataclass(frozen=True, slots=True)
class Introduction:
    """What one peer needs to open one stream to another.

    Attributes:
        question: Shown by the peer that connects.
        answer: Shown by the one that listens.
    """

    question: bytes = field(default_factory=_secret)
    answer: bytes = field(default_factory=_secret)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Introduction":
        """Raises ``ValueError`` when it is not as long as one."""
        if len(data) != 2 * SECRET_BYTES:
            raise ValueError(f"an introduction of {len(data)} bytes")
        return cls(data[:SECRET_BYTES], data[SECRET_BYTES:])

    def to_bytes(self) -> bytes:
        return self.question + self.answer


class Entrance:
    """Takes streams from processes of this user that were introduced.

    Args:
        name: As ``name_of`` makes it.
        take: Called with the peer that was introduced and its stream.
    """

    def __init__(self, name: str, take: Take):
        self._name = name
        self._take = take
        self._expected: dict[bytes, tuple[str, bytes]] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Raises ``OSError`` when the name is taken."""
        self._server = await asyncio.start_unix_server(self._enter, self._name)

    @contextlib.contextmanager
    def expecting(self, peer: str) -> Iterator[Introduction]:
        """While this lasts, one stream is taken from who shows the introduction."""
        introduction = Introduction()
        self._expected[introduction.question] = peer, introduction.answer
        try:
            yield introduction
        finally:
            self._expected.pop(introduction.question, None)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _enter(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                question = await reader.readexactly(SECRET_BYTES)
            known = self._expected.pop(question, None)
            if known is None or not _is_ours(writer):
                raise PermissionError("it was not introduced")
            peer, answer = known
            writer.write(answer)
        except (OSError, EOFError, TimeoutError) as error:
            logger.warning("Refused a stream of this host: %s", error)
            writer.transport.abort()
            return
        _enlarge(writer)
        await self._take(peer, reader, writer)


async def connect(name: str) -> Streams | None:
    """A stream to who listens under a name; None if that is nobody of this user."""
    try:
        reader, writer = await asyncio.open_unix_connection(name)
    except OSError:
        return None
    if _is_ours(writer):
        return reader, writer
    writer.transport.abort()
    return None


async def introduce(streams: Streams, introduction: Introduction) -> bool:
    """Whether the other end of a new stream is who gave the introduction."""
    reader, writer = streams
    writer.write(introduction.question)
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            answer = await reader.readexactly(SECRET_BYTES)
    except (OSError, EOFError, TimeoutError):
        return False
    _enlarge(writer)
    return secrets.compare_digest(answer, introduction.answer)


def name_of(peer: str, protocol: str) -> str:
    """Where a peer listens for a protocol: an abstract address, so no file."""
    digest = hashlib.sha256(f"{peer} {protocol}".encode()).hexdigest()
    return f"\0swarm_jax-{digest[:32]}"


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    """Whether the other end is, or was made by, a process of this user."""
    sock = writer.get_extra_info("socket")
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(packed)
    return user == os.getuid()


def _enlarge(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
