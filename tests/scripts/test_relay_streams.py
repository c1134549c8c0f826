"""What raw streams carry, both ways, through two daemons of this machine."""

import asyncio
import json
from types import SimpleNamespace

from scripts import relay_streams
from scripts.raw_stream import RawStream


def test_both_directions_carry_something(tmp_path):
    path = tmp_path / "streams.json"
    relay_streams.main(["--seconds", "0.5", "--json", str(path)])
    report = json.loads(path.read_text())
    assert set(report) == {"there_bytes_per_s", "back_bytes_per_s"}
    assert min(report.values()) > 0


class Endless:
    """A transport whose other side takes everything at once."""

    def __init__(self):
        self.written = 0

    def set_write_buffer_limits(self, high): ...

    def set_protocol(self, protocol): ...

    def is_closing(self):
        return False

    def write(self, chunk):
        self.written += 1
        assert self.written < 100, "nothing else had its turn"


def test_a_stream_that_takes_everything_leaves_others_their_turn():
    async def write_and_read():
        transport = Endless()
        RawStream(SimpleNamespace(transport=transport))
        for _ in range(5):
            await asyncio.sleep(0)
        return transport.written

    assert 2 <= asyncio.run(write_and_read()) < 10
