"""Measures training, checkpoints and moves, or the data layer, on this machine.

    python -m scripts.benchmark local
    python -m scripts.benchmark checkpoints --config.steps=20
    python -m scripts.benchmark data

local: a swarm of one peer per stage against a single process that trains the same
model, in turn. Tokens per second leave out the first steps of each run, in which
programs are compiled.

checkpoints: steps of a swarm that saves all the time against one that never does, in
turn; speed of the store for states of 100 MB and 1 GB (--state_mb), with hashing; and a
peer's move to another stage and back, by its parts.

data: how fast text becomes tokens, and tokens microbatches.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.data_speed import data_speed
from swarm_jax.errors import ConfigError
from swarm_jax.launcher import benchmark, checkpoint_times, flags, imports
from swarm_jax.launcher.processes import ProcessDied
from swarm_jax.launcher.runs import COMPILING_STEPS
from swarm_jax.metrics import write_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.benchmark", description=__doc__)
    what_help = "what to measure"
    parser.add_argument("what", choices=[*MEASURES], help=what_help)
    flags.add_experiment(parser, default="configs/benchmark_local.py")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="how often each is run (default: %(default)s)",
    )
    parser.add_argument(
        "--state_mb",
        type=int,
        nargs="+",
        default=[100, 1000],
        metavar="MB",
        help="sizes of state to save and restore, in 10^6 bytes (default: 100 1000)",
    )
    flags.add_device(parser, default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    check(args, config)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="swarm_jax-benchmark-") as folder:
        try:
            report = MEASURES[args.what](args, config, Path(folder), console)
        except ProcessDied as error:
            print(error, file=sys.stderr)
            return 1
    if args.json:
        write_json(args.json, report)
    return 0


def check(args, config) -> None:
    """Raises:
    ConfigError: There is nothing to measure.
    """
    if args.repeats < 1:
        raise ConfigError(f"--repeats {args.repeats}: use 1 or more")
    if min(args.state_mb) < 1:
        raise ConfigError(f"--state_mb {min(args.state_mb)}: use 1 or more")
    if config.steps <= COMPILING_STEPS:
        raise ConfigError(
            f"steps={config.steps}: the first {COMPILING_STEPS} are not counted, so "
            f"use --config.steps={COMPILING_STEPS + 1} or more"
        )
    if args.what == "checkpoints" and config.swarm.num_stages < 2:
        raise ConfigError("swarm.num_stages=1: a move needs two stages or more")


def local(args, config, folder: Path, console: Console) -> dict[str, Any]:
    experiment = flags.experiment_arguments(args)
    report = benchmark.swarm_against_single(
        experiment, args.device, args.repeats, folder, console
    )
    console.print(benchmark.report_table(report))
    return report


def checkpoints(args, config, folder: Path, console: Console) -> dict[str, Any]:
    with imports.many():
        from scripts.store_speed import store_speed
    experiment, repeats = flags.experiment_arguments(args), args.repeats
    where = experiment, args.device, repeats
    tokens = config.tokens_per_step
    report = {
        "store": [store_speed(folder / f"{m}", m, repeats) for m in args.state_mb],
        "stall": checkpoint_times.save_stall(*where, tokens, folder, console),
        "migrations": checkpoint_times.migrations(*where, folder, console),
    } | benchmark.circumstances(experiment, args.device)
    console.print(checkpoint_times.times_table(report))
    return report


MEASURES = {"local": local, "checkpoints": checkpoints, "data": data_speed}

if __name__ == "__main__":
    flags.run_main(main)
