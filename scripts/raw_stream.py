"""A stream that is always full in both directions: what arrives is only counted."""

import asyncio

from swarm_jax.net.frames import MAX_CHUNK_BYTES

RECEIVE_BYTES = 1024 * 1024


class RawStream(asyncio.BufferedProtocol):
    """Takes a stream over and writes to it until it is closed.

    Attributes:
        received_bytes: So far.
    """

    def __init__(self, writer: asyncio.StreamWriter):
        self.received_bytes = 0
        self._chunk = memoryview(bytes(MAX_CHUNK_BYTES))
        self._room = memoryview(bytearray(RECEIVE_BYTES))
        self._writer = writer  # which closes the stream when it is collected
        self._transport = writer.transport
        self._transport.set_write_buffer_limits(high=0)
        self._transport.set_protocol(self)
        self._is_writable = True
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._write)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self.received_bytes += nbytes

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        self._loop.call_soon(self._write)

    def close(self) -> None:
        self._transport.abort()

    def _write(self) -> None:
        """One chunk in a turn of the loop, or nothing else would ever have its turn."""
        self._transport.write(self._chunk)
        if self._is_writable and not self._transport.is_closing():
            self._loop.call_soon(self._write)
