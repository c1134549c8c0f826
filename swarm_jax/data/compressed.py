"""Files as streams of bytes, unpacked on the way: .gz (gzip) and .zst (Zstandard)."""

import gzip
import io
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 1 << 17
_PACKED_BYTES = 1 << 13
"""Unpacked at once: text that repeats itself becomes a thousand times as long."""


def open_stream(path: Path) -> BinaryIO:
    """Opens a file to be read from its beginning; its suffix says how it is packed.

    Reading raises ``OSError`` or ``zlib.error`` where the file is packed in another
    way, and ``EOFError`` where its end is missing.
    """
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdStream(path), _CHUNK_BYTES)
    return path.open("rb")


class _ZstdStream(io.RawIOBase):
    """All frames of a file. zstandard's own reader takes a cut file for a whole one."""

    def __init__(self, path: Path):
        # Here: nothing else needs it.
        import zstandard

        self._zstd_error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = None
        self._packed = b""
        self._ready = memoryview(b"")
        self._file = path.open("rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            if not self._packed:
                self._packed = self._file.read(_PACKED_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("its end is missing")
                return 0
            self._ready = memoryview(self._unpack())
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self) -> bytes:
        frame = self._frame or self._decompressor.decompressobj()
        try:
            ready = frame.decompress(self._packed)
        except self._zstd_error as error:
            raise OSError(f"it is no Zstandard file, or damaged ({error})") from error
        self._packed = frame.unused_data if frame.eof else b""
        self._frame = None if frame.eof else frame
        return ready

    def close(self) -> None:
        with closing(self._file):
            super().close()
