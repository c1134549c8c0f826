"""The close of a step: the all-reduce over shaped links, and what the device does."""

import contextlib
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from models.config import GPTConfig
from scripts import close_peer
from scripts.processor import Busy
from scripts.wiring import make_compute
from swarm_jax.config import ExperimentConfig
from swarm_jax.launcher import signals
from swarm_jax.launcher.links import Proxy
from swarm_jax.net.hivemind_butterfly import PART_VALUES
from swarm_jax.net.parts import PART_CODECS

MB = 1_000_000
WIDTH = 1024
PARTS = "alone", "read", "load", "update"
BLOCK_BYTES = 12 * WIDTH**2 * 4


def bound_s(num_bytes: float, peers: int, bits_per_s: float) -> float:
    """Least time of an all-reduce, in which each peer has one link for each direction.

    Each sends the shares of the others, and the mean of its own to each of them:
    2 (n - 1) / n of the vector, and gets as much (Patarasuk & Yuan 2009, theorem 1).
    """
    return 8 * 2 * (peers - 1) / peers * num_bytes / bits_per_s


def bytes_on_wire(num_bytes: int, wire: str) -> float:
    """Of a float32 vector of so many bytes, without heads."""
    sizes = {"float32": 4, "float16": 2, "int8": 1}
    part = sum(
        sizes[dtype] * shape[0] for dtype, shape in PART_CODECS[wire].specs(PART_VALUES)
    )
    return num_bytes / 4 * part / PART_VALUES


def reduce_figures(
    *,
    peers: int,
    num_mb: int,
    wire: str,
    link_mbps: float,
    rtt_ms: float,
    dilation: float,
    repeats: int,
) -> dict[str, Any]:
    """Rounds between processes of this machine, each behind a link of its own.

    The first round, in which streams are opened, is not counted.

    Args:
        dilation: By which the links are slower than ``link_mbps`` and ``rtt_ms``;
            times are given as if they were not.
    """
    bits_per_s = link_mbps * 1e6
    with Proxy() as proxy, _group(proxy, peers, num_mb * MB, wire) as pipes:
        for number in range(peers):
            proxy.set_line(
                str(number),
                bits_per_s=bits_per_s / dilation,
                rtt_s=dilation * rtt_ms / 1e3,
            )
        took_s, errors, carried, busy = [], [], [], []
        for repeat in range(repeats + 1):
            of_processor = Busy()
            carried_before = sum(proxy.carried_bytes.values())
            for pipe in pipes:
                pipe.send(f"round{repeat}")
            answers = [pipe.recv() for pipe in pipes]
            busy.append(of_processor.share())
            took_s.append(max(seconds for seconds, _ in answers) / dilation)
            errors.append(max(error for _, error in answers))
            # Each byte is counted at both of its ends.
            carried.append((sum(proxy.carried_bytes.values()) - carried_before) / 2)
    least_s = bound_s(bytes_on_wire(num_mb * MB, wire), peers, bits_per_s)
    seconds = statistics.median(took_s[1:])
    return {
        "peers": peers,
        "parameters_mb": num_mb,
        "wire": wire,
        "link_mbps": link_mbps,
        "rtt_ms": rtt_ms,
        "dilation": dilation,
        "reduce_s": took_s[1:],
        "bound_s": least_s,
        "ratio_to_bound": seconds / least_s,
        "bytes_per_peer": statistics.median(carried[1:]) / peers,
        "largest_error": max(errors[1:]),
        "cpu_share": statistics.median(busy[1:]),
    }


@contextlib.contextmanager
def _group(proxy: Proxy, peers: int, num_bytes: int, wire: str) -> Iterator[list]:
    """Pipes to processes that are ready for a round."""
    spawning = multiprocessing.get_context("spawn")
    pipes, processes, names, maddrs = [], [], [], []
    try:
        for number in range(peers):
            _, host, _, announced = proxy.options(str(number))
            ours, theirs = spawning.Pipe()
            arguments = theirs, number, (host, announced), num_bytes, wire
            process = spawning.Process(target=close_peer.main, args=arguments)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
            ours.send(maddrs[:1])
            name, where = ours.recv()
            names.append(name)
            maddrs += where
        for pipe in pipes:
            pipe.send(names)
        for pipe in pipes:
            pipe.recv()
        yield pipes
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join()
    finally:
        # All before any is waited for, or the others would complain of the first.
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def device_figures(num_mb: int, repeats: int) -> dict[str, Any]:
    """What the close asks of a device, for a body stage of about so many parameters.

    The first time, in which programs are compiled, is not counted.
    """
    return signals.run(_device_figures(num_mb, repeats))


async def _device_figures(num_mb: int, repeats: int) -> dict[str, Any]:
    blocks = max(1, round(num_mb * MB / BLOCK_BYTES))
    model = GPTConfig(
        num_layers=blocks + 2,
        model_dim=WIDTH,
        num_heads=8,
        ffn_dim=4 * WIDTH,
        feed_forward="gelu",
        vocab_size=260,
        sequence_length=8,
    )
    config = ExperimentConfig(run_id="close", steps=1000, model=model)
    config.swarm.layers_per_stage = (1, blocks, 1)
    config.swarm.microbatch_size = 1
    compute = make_compute(config, 1, inline=False)
    await compute.ready()
    times_s: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(repeats + 1):
        began_s = time.perf_counter()
        await compute.reduce_alone(1.0)
        alone_s = time.perf_counter()
        gradient = await compute.gradient_sum(1.0)
        read_s = time.perf_counter()
        await compute.load_reduced(gradient)
        loaded_s = time.perf_counter()
        await compute.apply(1.0)
        # Which also waits for the update.
        await compute.digest()
        digest_from_s = time.perf_counter()
        await compute.digest()
        digest_s = time.perf_counter() - digest_from_s
        times_s["alone"].append(alone_s - began_s)
        times_s["read"].append(read_s - alone_s)
        times_s["load"].append(loaded_s - read_s)
        times_s["update"].append(digest_from_s - loaded_s - digest_s)
    compute.close()
    return {
        "parameters_mb": round(sum(np.asarray(g).nbytes for g in gradient) / MB),
        **{f"{name}_s": seconds[1:] for name, seconds in times_s.items()},
    }


def close_figures(args, console, save) -> dict[str, Any]:
    """All rows; the arguments are ``scripts.benchmark``'s.

    Args:
        save: Called with the report when something has been measured.
    """
    report: dict[str, Any] = {"reduce": [], "device_times": []}
    for num_mb, peers, wire, rtt_ms in itertools.product(
        args.parameters_mb, args.peers, args.wires, args.rtt_ms or [0.0]
    ):
        row = reduce_figures(
            peers=peers,
            num_mb=num_mb,
            wire=wire,
            link_mbps=args.link_mbps,
            rtt_ms=rtt_ms,
            dilation=args.dilation or 1.0,
            repeats=args.repeats,
        )
        report["reduce"].append(row)
        save(report)
        console.print(
            f"{num_mb} MB, {peers} peers, {wire}, {rtt_ms:g} ms: "
            f"{row['ratio_to_bound']:.2f} times the bound"
        )
    for num_mb in args.parameters_mb:
        report["device_times"].append(device_figures(num_mb, args.repeats))
        save(report)
    return report


def close_tables(report: dict[str, Any]) -> Iterator[Table]:
    """For people."""
    table = Table(
        *("MB", "peers", "wire", "RTT", "reduce", "bound", "ratio"),
        *("sent", "error", "K", "CPU"),
        box=box.SIMPLE,
        padding=0,
        caption="ms and s; sent: MB of each peer; error: of values N(0, 1)",
    )
    for row in report["reduce"]:
        table.add_row(
            str(row["parameters_mb"]),
            str(row["peers"]),
            row["wire"],
            f"{row['rtt_ms']:g}",
            f"{statistics.median(row['reduce_s']):.2f}",
            f"{row['bound_s']:.2f}",
            f"{row['ratio_to_bound']:.2f}",
            f"{row['bytes_per_peer'] / MB:.1f}",
            f"{row['largest_error']:.1e}",
            f"{row['dilation']:.1f}",
            f"{row['cpu_share']:.0%}",
        )
    yield table
    heads = "reduce alone, s", "read sum, s", "load mean, s", "update, s"
    table = Table("parameters, MB", *heads)
    for row in report["device_times"]:
        parts = (statistics.median(row[f"{part}_s"]) for part in PARTS)
        table.add_row(str(row["parameters_mb"]), *(f"{part:.3f}" for part in parts))
    yield table
