"""Trains a whole swarm on this machine: bootstrap, stage servers and trainer.

    python -m scripts.launch --config configs/tiny.py --workdir runs/tiny

All are separate processes that talk over the network, as they would between machines.
Ctrl-C stops them all; the same command goes on from the last checkpoint. To see what
the swarm survives:

    python -m scripts.launch --config configs/tiny.py --workdir runs/soak \\
        --peers-per-stage 3 --duration 300 --kill-every 5 --seed 1
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags, mesh_option, soak_options, workdir
from swarm_jax.launcher.processes import ProcessDied
from swarm_jax.launcher.swarm import LocalSwarm


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.launch", description=__doc__)
    flags.add_experiment(parser)
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="FOLDER",
        help="run folder (default: runs/ and the experiment's run_id)",
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
    soak_options.add_arguments(parser)
    flags.add_device(parser, default="cpu")
    mesh_option.add_argument(parser)
    flags.add_tensorboard(parser)
    flags.add_cache_dir(parser)
    flags.add_die_with_parent(parser)
    args = parser.parse_args(argv)
    if args.peers_per_stage < 1:
        raise ConfigError(f"--peers-per-stage {args.peers_per_stage}: use 1 or more")
    churn = soak_options.churn_settings(args)
    soak_options.enough_steps(args, flags.experiment(args).steps)
    config = flags.experiment(args)
    mesh_option.check(args.mesh, config)
    folder = args.workdir or Path("runs") / config.run_id
    swarm = LocalSwarm(
        experiment=flags.experiment_arguments(args),
        num_stages=config.swarm.num_stages,
        steps=config.steps,
        workdir=folder,
        cache_dir=args.cache_dir,
        peers_per_stage=args.peers_per_stage,
        device=args.device,
        mesh=args.mesh,
        tensorboard=args.tensorboard,
        duration_s=args.duration,
        churn=churn,
    )
    try:
        with workdir.locked(folder):
            step = workdir.prepare(
                folder,
                config,
                overwrite=args.overwrite,
                may_resume=args.duration is None,
            )
            if step:
                print(f"{folder} goes on from its checkpoint of step {step}")
            swarm.run(Console(highlight=False), resumed_step=step)
    except KeyboardInterrupt:
        if args.duration is None:
            print(workdir.how_to_go_on(folder))
        raise
    except ProcessDied as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    flags.run_main(main)
