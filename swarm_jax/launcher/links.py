"""A TCP proxy between the peers of a swarm, which shapes or spoils their connections.

Each peer listens where only the proxy dials, and announces a port of the proxy. libp2p
dials from the port that it listens on, so the proxy knows both ends of a connection.
It runs in a thread of its own; its methods return when they have taken effect.
"""

import asyncio
import contextlib
import math
import secrets
import socket
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Container
from dataclasses import dataclass, field

from swarm_jax.launcher.lanes import Lane

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_768)
"""Systems take those above for whoever asks for any port, and so a peer's own before
it listens there."""
CHUNK_BYTES = 16 * 1024
MAX_ON_THE_WAY = 2048
"""Chunks of one direction of a connection: 32 MiB, as much as 500 Mb/s hold in 0.5 s.
With more on its way, its sender is made to wait."""
AHEAD_S = 0.02
"""How far a sender runs ahead of its lane, so that a late timer leaves no gap in it."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for no time: the other end is told that the connection was reset."""


@dataclass(frozen=True, slots=True)
class Line:
    """How all connections of a peer are.

    Attributes:
        delay_s: Each 16 KiB takes so long: a delay, and a throttle.
        held: Nothing arrives, but in the end all does.
        swallowed: What is sent is lost.
        bits_per_s: Of all that the peer sends together, and of all that it gets.
        rtt_s: Round trip to another peer; the longer of the two ends' counts.
    """

    delay_s: float = 0.0
    held: bool = False
    swallowed: bool = False
    bits_per_s: float = math.inf
    rtt_s: float = 0.0


@dataclass(eq=False, slots=True)
class Connection:
    """``writers``: by the name of the peer that gets what is written."""

    writers: dict[str, asyncio.StreamWriter]
    deaf: set[str] = field(default_factory=set)

    def cut(self, name: str) -> None:
        for writer in self.writers.values():
            end = writer.get_extra_info("socket")
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.abort()

    def abort(self) -> None:
        """Closes both ends, whatever they have not read yet."""
        for writer in self.writers.values():
            writer.transport.abort()

    def kill_silently(self, name: str) -> None:
        """Nothing that is sent arrives any more, and nobody is told."""
        self.deaf.update(self.writers)

    def half_close(self, name: str) -> None:
        """What ``name`` sends ends here; it still receives."""
        for other in self.writers.keys() - {name} - self.deaf:
            self.deaf.add(other)
            self.writers[other].write_eof()


class Proxy:
    """Carries all connections to the peers that it has addresses for.

    Attributes:
        carried_bytes: To and from each peer.
        swallowed_bytes: Of all peers.
    """

    def __init__(self):
        self.carried_bytes: Counter[str] = Counter()
        self.swallowed_bytes = 0
        self._names: dict[int, str] = {}
        self._lines: dict[str, Line] = {}
        self._up: defaultdict[str, Lane] = defaultdict(Lane)
        self._down: defaultdict[str, Lane] = defaultdict(Lane)
        self._changed = asyncio.Event()
        self._traps: dict[str, tuple[int, str]] = {}
        self._connections: set[Connection] = set()
        self._listeners: list[socket.socket] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def options(self, name: str) -> list[str]:
        """Of a peer's process, so that all that it says and hears comes this way."""
        port = _free_port(self._names)
        host, announced = (
            f"/ip4/{LOOPBACK}/tcp/{number}"
            for number in (port, self._do(self._listen(name, port)))
        )
        return ["--host_maddrs", host, "--announce_maddrs", announced]

    def set_line(self, name: str, **line: float) -> None:
        """Changes how all connections of a peer are; without arguments, heals them."""
        self._do(self._set_line(name, Line(**line)))

    def spoil(self, deed: str, name: str, after_bytes: int = 0) -> None:
        """Spoils a peer's connections once they have carried so many more bytes.

        Args:
            deed: A method of ``Connection``.
        """
        self._do(self._set_trap(name, after_bytes, deed))

    def is_spoilt(self, name: str) -> bool:
        """Whether the last ``spoil`` has happened."""
        return name not in self._traps

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _set_line(self, name: str, line: Line) -> None:
        self._lines[name] = line
        self._changed.set()
        self._changed = asyncio.Event()

    async def _set_trap(self, name: str, after_bytes: int, deed: str) -> None:
        self._traps[name] = self.carried_bytes[name] + after_bytes, deed
        self._check_trap(name)

    def _check_trap(self, name: str) -> None:
        limit, deed = self._traps.get(name, (float("inf"), ""))
        if self.carried_bytes[name] >= limit:
            del self._traps[name]
            for connection in self._connections:
                if name in connection.writers:
                    getattr(connection, deed)(name)

    async def _listen(self, name: str, port: int) -> int:
        listener = socket.create_server((LOOPBACK, 0))
        listener.setblocking(False)

        async def serve(end: socket.socket, dialler: int) -> None:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(sock=end)
                with contextlib.closing(writer):
                    await self._serve(port, dialler, reader, writer)

        def accept() -> None:
            with contextlib.suppress(OSError):
                # Asked for later, the address of who is gone is not known any more.
                end, (_, dialler) = listener.accept()
                self._loop.create_task(serve(end, dialler))

        self._names[port] = name
        # Not asyncio's server: closed as it accepts, it leaves that socket open.
        self._loop.add_reader(listener, accept)
        self._listeners.append(listener)
        return listener.getsockname()[1]

    async def _serve(self, port: int, dialler: int, reader, writer) -> None:
        """Carries one connection to the peer at ``port``, to its end."""
        dialled, name = self._names[port], self._names.get(dialler, str(dialler))
        its_reader, its_writer = await asyncio.open_connection(LOOPBACK, port)
        connection = Connection({name: writer, dialled: its_writer})
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as pumps:
                for source, sender, to in (
                    (reader, name, dialled),
                    (its_reader, dialled, name),
                ):
                    way = asyncio.Queue(MAX_ON_THE_WAY)
                    pumps.create_task(self._depart(source, sender, to, way))
                    pumps.create_task(self._arrive(connection, way, to))
        finally:
            self._connections.discard(connection)
            its_writer.close()

    def _line(self, name: str) -> Line:
        return self._lines.get(name, Line())

    async def _depart(self, reader, sender: str, to: str, way: asyncio.Queue) -> None:
        """Reads as fast as the sender's line takes it; a plain one holds one chunk."""
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                line = self._line(sender)
                sent_s = self._up[sender].book(
                    len(chunk), self._loop.time(), line.bits_per_s
                )
                rtt_s = max(line.rtt_s, self._line(to).rtt_s)
                await way.put((sent_s + rtt_s / 2, chunk))
                if not rtt_s and math.isinf(line.bits_per_s):
                    await way.join()
                await self._until(sent_s - AHEAD_S)
        await way.put((self._loop.time(), b""))

    async def _arrive(
        self, connection: Connection, way: asyncio.Queue, to: str
    ) -> None:
        """Passes on what has been on its way long enough; not to who is gone."""
        writer, is_gone = connection.writers[to], False
        while (arrival := await way.get())[1]:
            arrival_s, chunk = arrival
            try:
                if not is_gone:
                    await self._until(arrival_s)
                    rate = self._line(to).bits_per_s
                    await self._until(self._down[to].book(len(chunk), arrival_s, rate))
                    carried = await self._carries(connection, chunk)
                    if carried and to not in connection.deaf:
                        writer.write(chunk)
                        await writer.drain()
            except OSError:
                is_gone = True
            way.task_done()
        with contextlib.suppress(OSError):
            if to not in connection.deaf and not writer.is_closing():
                writer.write_eof()

    async def _until(self, time_s: float) -> None:
        if (left_s := time_s - self._loop.time()) > 0:
            await asyncio.sleep(left_s)

    async def _carries(self, connection: Connection, chunk: bytes) -> bool:
        """Waits as long as the line of either end says; False when it loses all."""

        def lines() -> list[Line]:
            return [self._line(name) for name in connection.writers]

        await asyncio.sleep(max(line.delay_s for line in lines()))
        while any(line.held for line in lines()):
            await self._changed.wait()
        if any(line.swallowed for line in lines()):
            self.swallowed_bytes += len(chunk)
            return False
        for name in connection.writers:
            self.carried_bytes[name] += len(chunk)
            self._check_trap(name)
        return True

    async def _stop(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        await asyncio.sleep(0)  # in which those just accepted have their first turn
        for connection in self._connections:
            connection.abort()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # in which closed transports let go of their sockets


def _free_port(taken: Container[int]) -> int:
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            if port not in taken:
                return port
