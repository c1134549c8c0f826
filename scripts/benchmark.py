"""Measures training speed on this machine.

    python -m scripts.benchmark local

local: a swarm of one peer per stage against a single process that trains the same
model, in turn. Tokens per second leave out the first steps of each run, in which
programs are compiled.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags
from swarm_jax.launcher.benchmark import report_table, swarm_against_single
from swarm_jax.launcher.processes import ProcessDied
from swarm_jax.launcher.runs import COMPILING_STEPS
from swarm_jax.metrics import write_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.benchmark", description=__doc__)
    parser.add_argument("what", choices=["local"], help="what to measure")
    flags.add_experiment(parser, default="configs/benchmark_local.py")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="how often each is run (default: %(default)s)",
    )
    flags.add_device(parser, default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    args = parser.parse_args(argv)
    steps = flags.experiment(args).steps
    if args.repeats < 1:
        raise ConfigError(f"--repeats {args.repeats}: use 1 or more")
    if steps <= COMPILING_STEPS:
        raise ConfigError(
            f"steps={steps}: the first {COMPILING_STEPS} are not counted, so use "
            f"--config.steps={COMPILING_STEPS + 1} or more"
        )
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="swarm_jax-benchmark-") as folder:
        try:
            report = swarm_against_single(
                flags.experiment_arguments(args),
                args.device,
                args.repeats,
                Path(folder),
                console,
            )
        except ProcessDied as error:
            print(error, file=sys.stderr)
            return 1
    console.print(report_table(report))
    if args.json:
        write_json(args.json, report)
    return 0


if __name__ == "__main__":
    flags.run_main(main)
