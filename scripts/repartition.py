"""Plans the partition of layers to stages anew, for the fleet at hand.

    python -m scripts.repartition --config configs/tiny.py --workdir runs/tiny

A swarm is as fast as its slowest stage: where machines are few and unequal, stages
should be too. This reads which peers there are and how fast, from the last run in
--workdir, from a running swarm (--initial_peers), or as told (--fleet 100,100,50), and
prints the partition that suits them, what it should bring, and the commands that start
the swarm with it. To change the partition, stop the swarm and start it so: nothing is
converted, since checkpoints are stored by layer, and restored onto any partition.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from swarm_jax.errors import CheckpointError, ConfigError
from swarm_jax.launcher import flags, imports
from swarm_jax.launcher.workdir import CHECKPOINTS
from swarm_jax.metrics import write_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.repartition", description=__doc__)
    flags.add_experiment(parser)
    parser.add_argument("--workdir", type=Path, metavar="FOLDER", help="run folder")
    parser.add_argument(
        "--checkpoint_dir",
        metavar="FOLDER",
        help="where the checkpoints are (default: WORKDIR/checkpoints)",
    )
    fleet_help = "peers' relative speeds, for example 100,100,50"
    parser.add_argument("--fleet", metavar="SPEEDS", help=fleet_help)
    parser.add_argument(
        "--num_stages",
        metavar="N",
        help="stages to plan for, or 'any' (default: as the experiment)",
    )
    parser.add_argument(
        "--max_layers",
        type=int,
        metavar="N",
        help="most blocks of a stage: what each peer's memory holds (default: no "
        "limit; with '--num_stages any' as many as a stage has now)",
    )
    flags.add_network(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    check(args)
    with imports.many():
        from scripts import replans
    report = replan(args, config) | {"step": newest_step(args, config)}
    report |= replans.instructions(args, config, report["proposed"])
    Console(highlight=False).print(replans.table(report))
    print(replans.how_to_start(report))
    if args.json:
        write_json(args.json, report)
    return 0


def check(args) -> None:
    """Raises:
    ConfigError: The options do not go together.
    """
    number = args.num_stages
    if number not in (None, "any") and not (number.isdigit() and int(number)):
        raise ConfigError(f"--num_stages {number}: use a number from 1, or 'any'")
    if args.max_layers is not None and args.max_layers < 1:
        raise ConfigError(f"--max_layers {args.max_layers}: use 1 or more")
    if args.workdir is None and args.checkpoint_dir is None:
        raise ConfigError("where are the checkpoints? --workdir or --checkpoint_dir")
    if args.workdir is None and not (args.fleet or args.initial_peers):
        raise ConfigError("which peers are there? --fleet, --initial_peers, --workdir")
    if args.fleet and args.initial_peers:
        raise ConfigError("--fleet and --initial_peers: use one of them")


def newest_step(args, config) -> int:
    """Step of the newest checkpoint of all stages.

    Raises:
        CheckpointError: There is none, or it is of another experiment.
    """
    with imports.many():
        from swarm_jax.stage.checkpoints import CheckpointFolder
    folder = args.checkpoint_dir or args.workdir / CHECKPOINTS
    fingerprint = config.model_fingerprint()
    checkpoints = CheckpointFolder(folder, model_fingerprint=fingerprint)
    if steps := checkpoints.steps():
        return steps[-1]
    raise CheckpointError(
        f"there is no complete checkpoint of all stages in {checkpoints.root}: on "
        "another partition the run would begin anew"
    )


def replan(args, config) -> dict[str, Any]:
    with imports.many():
        from scripts import fleet, replans
    if args.fleet:
        found = fleet.told(args.fleet)
    elif args.initial_peers:
        found = asyncio.run(fleet.serving(args, config))
    else:
        found = fleet.last_seen(args.workdir, config)
    number = args.num_stages or config.swarm.num_stages
    return replans.report(
        config,
        found,
        num_stages=None if number == "any" else int(number),
        max_layers=args.max_layers,
    )


if __name__ == "__main__":
    flags.run_main(main)
