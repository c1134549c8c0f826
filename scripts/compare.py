"""Compares runs: losses at matching steps, largest difference, speed, and the curves.

    python -m scripts.compare runs/tiny runs/tiny_single

The first run is the one that the others are compared with.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from swarm_jax.launcher import flags
from swarm_jax.launcher.compare import comparison_table, plot
from swarm_jax.launcher.runs import load_run


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.compare", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="FOLDER", help="run folders (--workdir)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.png",
        help="where the curves go (default: compare.png in the first folder)",
    )
    args = parser.parse_args(argv)
    runs = [load_run(folder) for folder in args.runs]
    output = args.output or args.runs[0] / "compare.png"
    console = Console(highlight=False)
    console.print(comparison_table(runs))
    plot(runs, output)
    console.print(f"Curves: {output}", soft_wrap=True)


if __name__ == "__main__":
    flags.run_main(main)
