"""What the daemons between two peers carry when nobody computes: raw streams.

    python -m scripts.relay_streams --json streams.json

Two processes, each with its p2pd on the loopback interface, and as many streams from
one to the other as a peer opens. Both write all the time, and what arrives is counted,
not looked at. ``scripts.benchmark relay`` compares peers that meet
through libp2p with it.
"""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from swarm_jax.launcher import flags, imports
from swarm_jax.metrics import write_json

PROTOCOL = "/swarm_jax/raw_streams"
WARM_S = 1.0
DIAL_TIMEOUT_S = 10.0


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.relay_streams", description=__doc__)
    add = parser.add_argument
    add("--streams", type=int, default=2, help="from one to the other (default: 2)")
    add("--seconds", type=float, default=10.0, help="of measuring (default: 10)")
    add("--json", type=Path, required=True, metavar="FILE")
    flags.add_die_with_parent(parser)
    args = parser.parse_args(argv)
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    listener = spawning.Process(target=listen, args=(theirs,), daemon=True)
    listener.start()
    theirs.close()
    try:
        there, back = asyncio.run(_bytes_per_s(ours, args.streams, args.seconds))
    finally:
        ours.close()
        listener.join()
    write_json(args.json, {"there_bytes_per_s": there, "back_bytes_per_s": back})


def listen(pipe: Connection) -> None:
    """The other process, until the pipe is closed."""
    with contextlib.suppress(EOFError):
        asyncio.run(_listen(pipe))


async def _listen(pipe: Connection) -> None:
    with imports.many():
        from scripts.raw_stream import RawStream
        from swarm_jax.net.hivemind_node import start_node
    node = await start_node()
    streams = []

    async def accept(info, reader, writer) -> None:
        streams.append(RawStream(writer))

    try:
        await node.p2p.add_binary_stream_handler(PROTOCOL, accept)
        pipe.send((node.peer_id, node.visible_maddrs()))
        while await asyncio.to_thread(pipe.recv):
            pipe.send(sum(stream.received_bytes for stream in streams))
    finally:
        for stream in streams:
            stream.close()
        await node.close()


async def _bytes_per_s(
    pipe: Connection, count: int, seconds: float
) -> tuple[float, float]:
    """Of all streams together: from this process to the other, and back."""
    with imports.many():
        from scripts.raw_stream import RawStream
        from swarm_jax.net.hivemind_node import start_node
    peer, maddrs = await asyncio.to_thread(pipe.recv)
    node = await start_node(initial_peers=maddrs)
    streams = []

    async def carried() -> tuple[float, int, int]:
        pipe.send("how much")
        there = await asyncio.to_thread(pipe.recv)
        back = sum(stream.received_bytes for stream in streams)
        return time.perf_counter(), there, back

    try:
        for _ in range(count):
            _, writer = await node.open_stream(peer, PROTOCOL, timeout_s=DIAL_TIMEOUT_S)
            streams.append(RawStream(writer))
        await asyncio.sleep(WARM_S)
        began_s, *before = await carried()
        await asyncio.sleep(seconds)
        ended_s, *after = await carried()
    finally:
        for stream in streams:
            stream.close()
        await node.close()
    there, back = (b - a for a, b in zip(before, after, strict=True))
    return there / (ended_s - began_s), back / (ended_s - began_s)


if __name__ == "__main__":
    flags.run_main(main)
