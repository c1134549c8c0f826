"""Compares runs: losses after equal tokens, largest difference, speed and memory.

    python -m scripts.compare runs/tiny runs/tiny_single

The first run is the one that the others are compared with. With --run it makes three of
one experiment before, one after the other, and compares those: a swarm on this machine,
one process with JAX, one with PyTorch:

    python -m scripts.compare --run runs/compare --config configs/tiny.py
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags, systems
from swarm_jax.launcher.compare import comparison_report, comparison_table, plot
from swarm_jax.launcher.processes import ProcessDied
from swarm_jax.launcher.runs import load_run
from swarm_jax.metrics import write_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.compare", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="*", type=Path, metavar="FOLDER", help="run folders (--workdir)")
    new = "new folder: train into FOLDER/swarm, FOLDER/single and FOLDER/pytorch first"
    add("--run", type=Path, metavar="FOLDER", help=new)
    flags.add_experiment(parser, default="")
    peers_help = "of each stage of that swarm (default: %(default)s)"
    add("--peers-per-stage", type=int, default=2, metavar="N", help=peers_help)
    flags.add_device(parser, default="cpu")
    flags.add_cache_dir(parser)
    plot_help = "where the picture goes (default: compare.png in the first run's)"
    add("--plot", type=Path, metavar="FILE.png", help=plot_help)
    add("--json", type=Path, metavar="FILE", help="write the report")
    args = parser.parse_args(argv)
    console = Console(highlight=False)
    check(args)
    try:
        folders = [*args.runs, *(train(args, console) if args.run else ())]
    except ProcessDied as error:
        print(error, file=sys.stderr)
        return 1
    runs = [load_run(folder) for folder in folders]
    picture = args.plot or folders[0] / "compare.png"
    console.print(comparison_table(runs))
    plot(runs, picture)
    console.print(f"Picture: {picture}", soft_wrap=True)
    if args.json:
        write_json(args.json, comparison_report(runs))
    return 0


def check(args) -> None:
    """Raises:
    ConfigError: There is nothing to compare, or half of what --run needs.
    """
    if not args.runs and not args.run:
        raise ConfigError("Nothing to compare: name run folders, or use --run FOLDER")
    if bool(args.run) != bool(args.config) or (args.overrides and not args.run):
        raise ConfigError("--run FOLDER and --config FILE go together")


def train(args, console: Console) -> list[Path]:
    """Makes the three runs."""
    flags.experiment(args)
    shared = [*flags.experiment_arguments(args), "--device", args.device]
    shared += ["--cache_dir", str(args.cache_dir)]
    return systems.train_all(args.run, shared, args.peers_per_stage, console)


if __name__ == "__main__":
    flags.run_main(main)
