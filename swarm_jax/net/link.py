"""One byte stream: bytes to frames, frames to bytes, turns of writing."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from swarm_jax.errors import BadMessage
from swarm_jax.net.decoder import FrameDecoder
from swarm_jax.net.frames import MAX_CHUNK_BYTES, IncomingBody, Kind, frame

logger = logging.getLogger(__name__)


class Link(asyncio.BufferedProtocol):
    """What the two ends of a stream share. What they do with frames is theirs.

    Args:
        peer: The other end.
        max_message_bytes: Larger messages are refused.
        on_lost: Called once when the stream has ended, for whatever reason.
    """

    def __init__(
        self, peer: str, max_message_bytes: int, on_lost: Callable[[], object]
    ):
        self.peer = peer
        self.lost = False
        self._max_message_bytes = max_message_bytes
        self._when_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder(peer, self)
        self._turn = asyncio.Lock()
        self._body_turn = asyncio.Lock()
        self._writable = asyncio.Event()
        self._writable.set()
        self._drained = 0
        self._received_bytes = 0
        self._written_bytes = 0

    async def attach(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Takes a stream over, to receive straight into arrays.

        The reader is of no further use; the writer is kept, since it closes the stream
        when it is collected.
        """
        self._writer = writer
        self._transport = writer.transport
        self._transport.set_write_buffer_limits(high=0)
        self._transport.set_protocol(self)
        reader.feed_eof()
        try:
            self.buffer_received(await reader.read())
        except OSError as error:
            self.connection_lost(error)
        if self._transport.is_closing():
            self.connection_lost(None)
        # An end of the stream that the reader has seen is seen again.
        self._transport.pause_reading()
        self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._received_bytes += nbytes
        self._heard()
        try:
            self._decoder.buffer_updated(nbytes)
        except BadMessage as error:
            self.drop(error)

    def buffer_received(self, data: bytes) -> None:
        """For what came before this object took the stream over."""
        try:
            self._decoder.feed(data)
        except BadMessage as error:
            self.drop(error)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._drained += 1
        self._writable.set()

    @property
    def _is_open(self) -> bool:
        """Until the transport has failed, of which ``connection_lost`` tells later."""
        return not self.lost and not self._transport.is_closing()

    @property
    def _sent_bytes(self) -> int:
        """What has left this process."""
        return self._written_bytes - self._transport.get_write_buffer_size()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._writable.set()
            self._on_lost(str(exc or "the connection was closed"))
            self._when_lost()

    def abort(self) -> None:
        """Closes the stream without sending what is still buffered."""
        self._transport.abort()

    def drop(self, error: BadMessage) -> None:
        """Closes the stream to a peer that sent something malformed."""
        logger.warning("Dropped the connection of peer %s: %s", self.peer, error.reason)
        self.abort()

    def _in_order(
        self, views: Sequence[memoryview]
    ) -> contextlib.AbstractAsyncContextManager:
        """The turn of a whole message, if it has more than one frame of body.

        Were the frames of all messages mixed, all of them would arrive at the end:
        what comes after them would stand still, and then get all at once.
        """
        is_small = sum(map(len, views)) <= MAX_CHUNK_BYTES
        return contextlib.nullcontext() if is_small else self._body_turn

    async def _write(self, pieces: Sequence[bytes | memoryview]) -> bool:
        """Writes one frame when its turn has come; False when the link is lost."""
        async with self._turn:
            await self._writable.wait()
            if self._is_open:
                for piece in pieces:
                    self._written_bytes += len(piece)
                    self._transport.write(piece)
            return self._is_open

    def _write_now(self, kind: Kind, call_id: int) -> None:
        if self._is_open:
            self._transport.write(frame(kind, call_id))

    def _heard(self) -> None:
        """Something has been received."""

    def _on_lost(self, reason: str) -> None:
        raise NotImplementedError

    def body_of(self, call_id: int) -> IncomingBody | None:
        raise NotImplementedError

    def on_frame(self, kind: Kind, call_id: int, payload: bytearray) -> None:
        raise NotImplementedError
