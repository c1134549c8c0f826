"""Speed of a swarm between the ends of its steps, from what its trainer recorded."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from swarm_jax.errors import ConfigError
from swarm_jax.launcher.runs import COMPILING_STEPS
from swarm_jax.metrics import read_records


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a step in which the pipeline was full.

    Attributes:
        start_s, end_s: On this machine's monotonic clock.
        microbatches: That came back in it.
    """

    start_s: float
    end_s: float
    microbatches: int

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Processor time of a group of processes.

    Attributes:
        at_s: When it was read, on this machine's monotonic clock.
        used_s: What had been used by then.
    """

    at_s: Sequence[float]
    used_s: Sequence[float]

    def within(self, window: Window) -> float:
        """Seconds used in a window, by straight lines between readings."""
        ends_s = [window.start_s, window.end_s]
        before_s, after_s = np.interp(ends_s, self.at_s, self.used_s)
        return float(after_s - before_s)


def full_windows(workdir: Path, in_flight: int) -> list[Window]:
    """Of each step behind the first ``COMPILING_STEPS``: while it was not at its ends.

    Args:
        in_flight: Microbatches that fill the pipeline: so many at the beginning and at
            the end of a step are left out.

    Raises:
        ConfigError: No step is long enough: the swarm is recorded once per second.
    """
    records = read_records(workdir / "metrics" / "swarm.jsonl")
    windows = []
    for step, snapshots in groupby(records, lambda record: record["step"]):
        full = [
            (record["time_s"], record["answered"])
            for record in snapshots
            if in_flight
            <= record["answered"]
            <= record["microbatches_per_step"] - in_flight
        ]
        if step >= COMPILING_STEPS and len(full) > 1:
            (start_s, first), (end_s, last) = full[0], full[-1]
            windows.append(Window(start_s, end_s, last - first))
    if not windows or not sum(window.microbatches for window in windows):
        raise ConfigError(
            "the steps are over too soon to be measured: use a larger "
            "--config.data.target_batch_size"
        )
    return windows


def relay_figures(
    workdir: Path,
    windows: Sequence[Window],
    cpu: CpuTimes,
    *,
    microbatch_tokens: int,
    boundaries: int,
) -> dict[str, float]:
    """Figures of one run.

    Args:
        windows: As ``full_windows`` gives them.
        cpu: Of all processes of the run.
        microbatch_tokens: Tokens of a microbatch.
        boundaries: Between its stages.

    Returns:
        ``tokens_per_s`` in the windows, and ``closing_tokens_per_s`` of whole steps;
        ``bytes_per_token_per_boundary``, both ways and with the targets, and the share
        of them that passed no network; ``cpu_s_per_gb``: processor time of all
        processes per 10^9 of these bytes; latencies of microbatches.
    """
    summary = json.loads((workdir / "summary.json").read_text())
    ways = ("activation", "gradient")
    crossing = sum(summary[f"{way}_bytes_per_token_per_boundary"] for way in ways)
    microbatches = sum(window.microbatches for window in windows)
    tokens = microbatches * microbatch_tokens
    crossed_gb = tokens * boundaries * crossing / 1e9
    steps = list(read_records(workdir / "metrics" / "trainer.jsonl"))[COMPILING_STEPS:]
    latency = {
        f"microbatch_{part}_ms": 1e3
        * statistics.median(step[f"microbatch_{part}_s"] for step in steps)
        for part in ("p50", "p95")
    }
    return {
        "tokens_per_s": tokens / sum(window.length_s for window in windows),
        "closing_tokens_per_s": sum(step["tokens"] for step in steps)
        / sum(step["step_s"] for step in steps),
        "bytes_per_token_per_boundary": crossing,
        "same_host_share": summary["same_host_share"],
        "cpu_s_per_gb": sum(map(cpu.within, windows)) / crossed_gb,
    } | latency
