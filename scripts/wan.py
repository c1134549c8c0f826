"""Training over slow links: how busy accelerators are that sleep (SWARM, table B1).

Real bytes and the real protocol between libp2p daemons behind a shaping proxy. Links,
round trips and computing are slowed down by one factor K, or this machine, which stands
for all peers at once, would be what is measured.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
from rich import box
from rich.table import Table

from scripts.processor import Busy, processor_s
from scripts.wan_swarm import running, wan_config
from swarm_jax.launcher import signals
from swarm_jax.launcher.links import Proxy
from swarm_jax.net.protocols import ArraySpec
from swarm_jax.stage.codec import make_codec

LINK_BITS_PER_S = 500e6
SEQUENCE_LENGTH = 512
CPU_SHARE = 0.3
"""Of this machine's cores that a swarm at its roofline may take."""
OWN_SHARE = 0.4
"""Of one core that this process may take, whose threads share the interpreter."""
CALIBRATION_MICROBATCHES = 12
ROUNDS = 2
"""Of all microbatches in flight: so many to settle, and as many at least to measure."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model of the paper, by what one stage does to a sequence of 512 tokens.

    Attributes:
        flop: Forward and backward of one stage.
        recalled: The paper's utilisation by round trip in ms, from memory.
    """

    width: int
    wire: str
    flop: float
    recalled: dict[int, float]

    @property
    def specs(self) -> Sequence[ArraySpec]:
        shape_BLD = 1, SEQUENCE_LENGTH, self.width
        return make_codec(self.wire, shape_BLD, "float32").specs

    @property
    def wire_s(self) -> float:
        """One tensor over one link. bfloat16 is as large as the paper's float16."""
        return 8 * _nbytes(self.specs) / LINK_BITS_PER_S

    def compute_s(self, tflops: float) -> float:
        return self.flop / (tflops * 1e12)

    def busy_s(self, tflops: float) -> float:
        """Roofline of one microbatch: a stage sends two tensors, and gets two."""
        return max(self.compute_s(tflops), 2 * self.wire_s)

    def round_trip_s(self, tflops: float, rtt_s: float, num_stages: int) -> float:
        """From the trainer and back, with nobody else on the way."""
        crossings = 2 * (num_stages - 1)
        computing_s = num_stages * self.compute_s(tflops)
        return crossings * self.wire_s + num_stages * rtt_s + computing_s


CASES = {
    "base": Case(
        768,
        "bfloat16",
        2.17e10,
        {0: 0.180, 10: 0.118, 50: 0.0488, 100: 0.0278, 200: 0.0153},
    ),
    "xxlarge": Case(
        4096,
        "bfloat16",
        6.18e11,
        {0: 0.321, 10: 0.289, 50: 0.201, 100: 0.149, 200: 0.101},
    ),
    "gpt3": Case(
        12288,
        "bfloat16",
        5.57e12,
        {0: 0.821, 10: 0.793, 50: 0.703, 100: 0.602, 200: 0.485},
    ),
    "ours": Case(
        4096,
        "int8",
        1.86e12,
        {0: 0.895, 10: 0.872, 50: 0.795, 100: 0.715, 200: 0.592},
    ),
}
ROUND_TRIPS_MS = tuple(CASES["base"].recalled)


async def calibrate(case: Case, proxy: Proxy, num_stages: int) -> float:
    """Seconds per microbatch, through all its peers, that are not too fast for here."""
    counted = asyncio.Queue()
    config = wan_config(
        num_stages=num_stages, sequence_length=SEQUENCE_LENGTH, in_flight=4
    )
    async with running(
        config,
        proxy,
        specs=case.specs,
        compute_s=0.0,
        on_count=lambda stage: stage or counted.put_nowait(stage),
    ):
        for _ in range(4):
            await counted.get()
        own_s, all_s = _own_s(), processor_s()
        for _ in range(CALIBRATION_MICROBATCHES):
            await counted.get()
        own_s, all_s = _own_s() - own_s, processor_s() - all_s
    slowest_s = max(own_s / OWN_SHARE, all_s / (CPU_SHARE * psutil.cpu_count()))
    return slowest_s / CALIBRATION_MICROBATCHES


async def measure(
    case: Case,
    proxy: Proxy,
    *,
    num_stages: int,
    rtt_ms: float,
    tflops: float,
    dilation: float,
    seconds: float,
    in_flight: int | None = None,
) -> dict[str, Any]:
    """One row of the table.

    Args:
        dilation: The factor K.
        seconds: For which the links fill, and then for which microbatches are counted;
            both longer until all that is in flight has come round twice.
        in_flight: Microbatches in the swarm; None: six times what fills it, and 16.
    """
    loop = asyncio.get_running_loop()
    rtt_s, compute_s = rtt_ms / 1e3, case.compute_s(tflops)
    round_trip_s = case.round_trip_s(tflops, rtt_s, num_stages)
    if in_flight is None:
        in_flight = math.ceil(6 * round_trip_s / case.busy_s(tflops)) + 16
    times_s: list[float] = []
    config = wan_config(
        num_stages=num_stages, sequence_length=SEQUENCE_LENGTH, in_flight=in_flight
    )
    async with running(
        config,
        proxy,
        specs=case.specs,
        compute_s=dilation * compute_s,
        on_count=lambda stage: stage or times_s.append(loop.time()),
        line={"bits_per_s": LINK_BITS_PER_S / dilation, "rtt_s": dilation * rtt_s},
    ):
        settled_s = loop.time() + seconds
        while len(times_s) < ROUNDS * in_flight or loop.time() < settled_s:
            await asyncio.sleep(0.05)
        began_s, busy = times_s[-1], Busy()
        already = len(times_s)
        while (count := len(times_s) - already) < ROUNDS * in_flight or (
            loop.time() < began_s + seconds
        ):
            await asyncio.sleep(0.05)
        cpu_share = busy.share()
        # What is in flight comes round in bursts: only whole rounds are fair.
        count -= count % in_flight
        rate = count / (times_s[already + count - 1] - began_s)
    utilisation = rate * dilation * compute_s
    roofline = compute_s / case.busy_s(tflops)
    return {
        "rtt_ms": rtt_ms,
        "tflops": tflops,
        "compute_s": compute_s,
        "tensor_wire_s": case.wire_s,
        "microbatches_in_flight": in_flight,
        "microbatches_measured": count,
        "dilation": dilation,
        "cpu_share": cpu_share,
        "utilisation": utilisation,
        "roofline": roofline,
        "bound": "compute" if roofline == 1 else "bandwidth",
        "ratio_to_roofline": utilisation / roofline,
        "recalled": case.recalled.get(int(rtt_ms)),
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Peers that start slowly, or do not hear for long: that is what is looked at."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def wan_figures(args, console, save) -> list[dict[str, Any]]:
    """All rows, in turn; the arguments are ``scripts.benchmark``'s.

    Args:
        save: Called with the rows so far, when there is one more.
    """
    rows = []
    with quiet(), Proxy() as proxy:
        for name in args.models:
            case = CASES[name]
            dilation = args.dilation
            if dilation is None:
                slowest_s = signals.run(calibrate(case, proxy, args.stages))
                least_s = min(case.busy_s(tflops) for tflops in args.tflops)
                dilation = max(1.0, slowest_s / least_s)
            for tflops in args.tflops:
                for rtt_ms in args.rtt_ms or ROUND_TRIPS_MS:
                    row = signals.run(
                        measure(
                            case,
                            proxy,
                            num_stages=args.stages,
                            rtt_ms=rtt_ms,
                            tflops=tflops,
                            dilation=dilation,
                            seconds=args.seconds,
                            in_flight=args.in_flight,
                        )
                    )
                    rows.append({"case": name} | row)
                    save(rows)
                    console.print(
                        f"{name}, {rtt_ms:g} ms, {tflops:g} TFLOP/s: "
                        f"{row['utilisation']:.1%} of {row['roofline']:.1%}"
                    )
    return rows


def wan_table(rows: Sequence[dict[str, Any]]) -> Table:
    """For people."""
    table = Table(
        *("model", "TFLOP/s", "RTT", "busy", "limit", "by", "ratio"),
        *("paper", "window", "K", "CPU"),
        box=box.SIMPLE,
        padding=0,
        caption="RTT in ms; limit: of compute or link; paper: recalled, not read",
    )
    for row in rows:
        recalled = "-" if row["recalled"] is None else f"{row['recalled']:.1%}"
        table.add_row(
            row["case"],
            f"{row['tflops']:g}",
            f"{row['rtt_ms']:g}",
            f"{row['utilisation']:.1%}",
            f"{row['roofline']:.1%}",
            {"compute": "compute", "bandwidth": "link"}[row["bound"]],
            f"{row['ratio_to_roofline']:.2f}",
            recalled,
            str(row["microbatches_in_flight"]),
            f"{row['dilation']:.1f}",
            f"{row['cpu_share']:.0%}",
        )
    return table


def _nbytes(specs: Sequence[ArraySpec]) -> int:
    sizes = {"int8": 1, "bfloat16": 2}
    return sum(sizes[dtype] * math.prod(shape) for dtype, shape in specs)


def _own_s() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system
