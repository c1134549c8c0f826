"""Trains variants of one experiment and tabulates what they came to.

    python -m scripts.sweep configs/tiny.py --vary model.ffn_dim=256,512 \\
        --vary seed=1,2,3 --workdir runs/sweep

Several --vary give all combinations; values are Python literals (or text) with commas
between them. --variants takes variants that the config file names. Runs that are done
are not run again; one that fails is named, and the others go on (exit code 1).
Seeds become means and standard deviations.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import benchmark, flags, workdir
from swarm_jax.launcher.sweep import RUNNERS, Sweep
from swarm_jax.launcher.sweep_results import Row, markdown, read_rows, results_text
from swarm_jax.launcher.variations import make_variations
from swarm_jax.metrics import write_json


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    variations = make_variations(args.config, args.overrides, args.vary, args.variants)
    sweep = Sweep(
        path=args.config,
        runner=args.runner,
        device=args.device,
        parallel=args.parallel,
        workdir=args.workdir,
        cache_dir=args.cache_dir,
    )
    console = Console(highlight=False, markup=False, soft_wrap=True)
    with workdir.locked(args.workdir):
        try:
            failed = sweep.run(variations, console.print)
        except KeyboardInterrupt:
            console.print("Stopped. The same command goes on with what is not done")
            raise
        rows = read_rows([(v, sweep.folder(v)) for v in variations])
        if rows:
            report(args, rows, console)
    for child in failed:
        console.print(f"FAILED: {child.name}, see {child.log}")
    return 1 if failed else 0


def parse(argv: Sequence[str] | None):
    """Raises:
    ConfigError: Something is wrong with the options.
    """
    parser = flags.Parser(prog="scripts.sweep", description=__doc__)
    add = parser.add_argument
    add("config", metavar="FILE", help="experiment; --config.FIELD=VALUE is taken too")
    add(
        "--vary",
        action="append",
        default=[],
        metavar="FIELD=VALUE,VALUE",
        help="train with each of these values; may be given several times",
    )
    add("--variants", metavar="NAME,NAME", help="of the config file's, or: all")
    add(
        "--runner",
        choices=sorted(RUNNERS),
        default="single",
        help="single: one process that simulates the swarm's wire; launch: a swarm on "
        "this machine; pytorch: PyTorch (default: %(default)s)",
    )
    help = "how many train at a time; they share a GPU's memory (default: %(default)s)"
    add("--parallel", type=int, default=1, metavar="N", help=help)
    add("--workdir", type=Path, required=True, help="a run folder each goes into it")
    add("--json", type=Path, metavar="FILE", help="where the figures go")
    add("--markdown", type=Path, metavar="FILE", help="where the table goes")
    add("--plot", type=Path, metavar="FILE.png", help="where the losses' picture goes")
    flags.add_device(parser, default="cpu")
    flags.add_cache_dir(parser)
    args = parser.parse_args(argv)
    if args.parallel < 1:
        raise ConfigError(f"--parallel {args.parallel}: use 1 or more")
    if args.runner == "launch" and args.parallel > 1 and args.device != "cpu":
        raise ConfigError(
            f"--parallel {args.parallel}: a swarm takes all cards to itself; use 1"
        )
    return args


def report(args, rows: Sequence[Row], console: Console) -> None:
    """Prints the table; writes what was asked for."""
    console.print(results_text(rows))
    if args.json:
        figures = {
            "rows": [dataclasses.asdict(row) for row in rows],
            "runner": args.runner,
            "parallel": args.parallel,
        } | benchmark.circumstances([args.config, *args.overrides], args.device)
        write_json(args.json, figures)
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(markdown(rows))
    if args.plot:
        from swarm_jax.launcher.sweep_plot import plot

        plot(rows, args.plot)


if __name__ == "__main__":
    flags.run_main(main)
