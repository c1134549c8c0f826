"""Trains a whole swarm on this machine: bootstrap, stage servers and trainer.

    python -m scripts.launch --config configs/tiny.py --workdir runs/tiny

All are separate processes that talk over the network, as they would between machines.
Ctrl-C stops them all.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags
from swarm_jax.launcher.processes import ProcessDied
from swarm_jax.launcher.swarm import LocalSwarm, prepare_workdir


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.launch", description=__doc__)
    flags.add_experiment(parser)
    parser.add_argument(
        "--workdir", type=Path, required=True, metavar="FOLDER", help="run folder"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run that is in the run folder",
    )
    parser.add_argument(
        "--peers-per-stage",
        type=int,
        default=2,
        metavar="N",
        help="stage servers of each stage (default: %(default)s)",
    )
    flags.add_device(parser, default="cpu")
    flags.add_tensorboard(parser)
    flags.add_cache_dir(parser)
    args = parser.parse_args(argv)
    if args.peers_per_stage < 1:
        raise ConfigError(f"--peers-per-stage {args.peers_per_stage}: use 1 or more")
    config = flags.experiment(args)
    prepare_workdir(args.workdir, args.overwrite)
    swarm = LocalSwarm(
        experiment=flags.experiment_arguments(args),
        num_stages=config.swarm.num_stages,
        steps=config.steps,
        workdir=args.workdir,
        cache_dir=args.cache_dir,
        peers_per_stage=args.peers_per_stage,
        device=args.device,
        tensorboard=args.tensorboard,
    )
    try:
        swarm.run(Console(highlight=False))
    except ProcessDied as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    flags.run_main(main)
