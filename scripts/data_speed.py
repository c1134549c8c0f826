"""Speed of the data layer beside what a swarm takes from its trainer."""

from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from swarm_jax.data.speed import feeding_tokens_per_s, tokenisation_mb_per_s
from swarm_jax.launcher import benchmark, flags

PEERS = 100
PEER_TOKENS_PER_S = 5_000
"""What the need is calculated with: each token passes one peer of every stage, so that
the swarm takes peers / stages * this many."""


def data_speed(args, config, folder: Path, console: Console) -> dict[str, Any]:
    """Measures, prints the table, and returns the report."""
    needed = PEERS / config.swarm.num_stages * PEER_TOKENS_PER_S
    report = {
        "tokenisation_mb_per_s": tokenisation_mb_per_s(config, args.repeats),
        "feeding_tokens_per_s": feeding_tokens_per_s(config, folder, args.repeats),
        "needed_tokens_per_s": needed,
    }
    console.print(speed_table(report, config.swarm.num_stages))
    experiment = flags.experiment_arguments(args)
    return report | benchmark.circumstances(experiment, args.device)


def speed_table(report: dict[str, Any], num_stages: int) -> Table:
    needed = report["needed_tokens_per_s"]
    table = Table(
        "what",
        "median of one process",
        "of what is needed",
        caption=f"needed: {needed:,.0f} tokens/s, by {PEERS} peers of "
        f"{PEER_TOKENS_PER_S:,} tokens/s each, in {num_stages} stages",
    )
    for name, speeds in report["tokenisation_mb_per_s"].items():
        table.add_row(f"tokenise: {name}", f"{median(speeds):,.1f} MB/s", "once")
    for name, speeds in report["feeding_tokens_per_s"].items():
        speed = median(speeds)
        times = f"{speed / needed:,.1f} times"
        table.add_row(f"feed: {name}", f"{speed:,.0f} tokens/s", times)
    return table
