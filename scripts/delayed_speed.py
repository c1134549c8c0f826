"""What ``swarm.delayed_updates`` is worth behind slow links.

The swarm of ``scripts.wan``, with several peers per stage, whose steps end: each is
closed with an all-reduce that passes the same links as microbatches do.
"""

import asyncio
import itertools
import math
import statistics
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from scripts.close_speed import MB, bound_s, bytes_on_wire
from scripts.processor import Busy
from scripts.wan import CASES, SEQUENCE_LENGTH, Case, calibrate, quiet
from scripts.wan_swarm import running, wan_config
from swarm_jax.launcher import signals
from swarm_jax.launcher.links import Proxy

WARM_UP_STEPS = 2
ENDLESS = 1000


async def step_figures(
    case: Case,
    proxy: Proxy,
    *,
    delayed_updates: bool,
    num_stages: int,
    peers: int,
    microbatches: int,
    parameters_mb: int,
    wire: str,
    link_mbps: float,
    rtt_ms: float,
    tflops: float,
    dilation: float,
    in_flight: int,
    steps: int,
) -> tuple[float, float]:
    """Seconds of a step, with its close, as if nothing was slowed down.

    And the share of this machine's cores that was busy meanwhile.

    Args:
        peers: Of each stage.
        parameters_mb: Of a stage, in 10^6 bytes of float32.
        dilation: By which links and computing are slower.
        in_flight: Microbatches in the swarm.
        steps: Of which it is the mean.
    """
    loop = asyncio.get_running_loop()
    times_s: dict[int, float] = {}
    warm, enough = asyncio.Event(), asyncio.Event()

    def committed(stage: int, step: int) -> None:
        times_s.setdefault(step, loop.time())
        if step == WARM_UP_STEPS:
            warm.set()
        if step == WARM_UP_STEPS + steps:
            enough.set()

    config = wan_config(
        num_stages=num_stages,
        sequence_length=SEQUENCE_LENGTH,
        in_flight=in_flight,
        steps=ENDLESS,
        microbatches=microbatches,
    )
    config.swarm.delayed_updates = delayed_updates
    config.swarm.allreduce_wire = wire
    generator = np.random.default_rng(0)
    async with running(
        config,
        proxy,
        specs=case.specs,
        compute_s=dilation * case.compute_s(tflops),
        on_count=lambda stage: None,
        line={
            "bits_per_s": link_mbps * 1e6 / dilation,
            "rtt_s": dilation * rtt_ms / 1e3,
        },
        peers_per_stage=peers,
        gradient=generator.standard_normal(parameters_mb * MB // 4, np.float32),
        on_commit=committed,
    ):
        await warm.wait()
        busy = Busy()
        await enough.wait()
        cpu_share = busy.share()
    took_s = times_s[WARM_UP_STEPS + steps] - times_s[WARM_UP_STEPS]
    return took_s / steps / dilation, cpu_share


def delayed_figures(args, console, save) -> list[dict[str, Any]]:
    """All rows, in turn; the arguments are ``scripts.benchmark``'s.

    Args:
        save: Called with the rows so far, when there is one more.
    """
    rows = []
    names = "models", "tflops", "rtt_ms", "peers", "parameters_mb", "wires"
    with quiet(), Proxy() as proxy:
        for what in itertools.product(*(getattr(args, name) for name in names)):
            rows.append(_row(args, proxy, *what))
            save(rows)
            row = rows[-1]
            console.print(
                f"{row['case']}, {row['rtt_ms']:g} ms, {row['parameters_mb']} MB: "
                f"{row['step_s']:.2f} s a step, delayed {row['delayed_step_s']:.2f} s"
            )
    return rows


def _row(args, proxy, name, tflops, rtt_ms, peers, parameters_mb, wire):
    case = CASES[name]
    busy_s = case.busy_s(tflops) / peers
    dilation = args.dilation
    if dilation is None:
        slowest_s = signals.run(calibrate(case, proxy, args.stages))
        dilation = max(1.0, slowest_s / busy_s)
    in_flight = args.in_flight
    if in_flight is None:
        round_trip_s = case.round_trip_s(tflops, rtt_ms / 1e3, args.stages)
        in_flight = 2 * math.ceil(round_trip_s / busy_s) + 4 * peers
    what = {
        "peers": peers,
        "microbatches": args.microbatches,
        "parameters_mb": parameters_mb,
        "wire": wire,
        "link_mbps": args.link_mbps,
        "rtt_ms": rtt_ms,
        "tflops": tflops,
        "dilation": dilation,
        "in_flight": in_flight,
        "steps": args.steps,
    }
    took_s: dict[bool, list[float]] = {False: [], True: []}
    shares = []
    for _ in range(args.repeats):
        for delayed_updates in (False, True):
            measured = step_figures(
                case,
                proxy,
                delayed_updates=delayed_updates,
                num_stages=args.stages,
                **what,
            )
            seconds, share = signals.run(measured)
            took_s[delayed_updates].append(seconds)
            shares.append(share)
    ratios = [plain / delayed for plain, delayed in zip(*took_s.values(), strict=True)]
    num_bytes = bytes_on_wire(parameters_mb * MB, wire)
    compute_s = args.microbatches * case.compute_s(tflops) / peers
    return {
        "case": name,
        "stages": args.stages,
        **what,
        "compute_s": compute_s,
        "reduce_bound_s": bound_s(num_bytes, peers, args.link_mbps * 1e6),
        "step_s": statistics.median(took_s[False]),
        "delayed_step_s": statistics.median(took_s[True]),
        "busy": compute_s / statistics.median(took_s[False]),
        "delayed_busy": compute_s / statistics.median(took_s[True]),
        "speedup": statistics.median(ratios),
        "cpu_share": max(shares),
    }


def delayed_table(rows: list[dict[str, Any]]) -> Table:
    """For people."""
    table = Table(
        *("model", "RTT", "peers", "MB", "wire", "compute", "reduce", "step"),
        *("delayed", "busy", "delayed", "x", "K", "CPU"),
        box=box.SIMPLE,
        padding=0,
        caption="seconds a step; RTT in ms; compute: a step's, by one peer; reduce: "
        "least time on the links; busy: compute by step; CPU: of this machine, at most",
    )
    for row in rows:
        table.add_row(
            row["case"],
            f"{row['rtt_ms']:g}",
            str(row["peers"]),
            str(row["parameters_mb"]),
            row["wire"],
            f"{row['compute_s']:.2f}",
            f"{row['reduce_bound_s']:.2f}",
            f"{row['step_s']:.2f}",
            f"{row['delayed_step_s']:.2f}",
            f"{row['busy']:.0%}",
            f"{row['delayed_busy']:.0%}",
            f"{row['speedup']:.2f}",
            f"{row['dilation']:.1f}",
            f"{row['cpu_share']:.0%}",
        )
    return table
