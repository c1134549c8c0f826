"""Serves one stage of the model to the swarm.

    python -m scripts.run_server --config configs/tiny.py --stage 1 \\
        --initial_peers /ip4/10.0.0.5/tcp/4001/p2p/12D3... --workdir runs/tiny

``scripts.run_dht`` prints the command with its own address. Start as many as you like,
on any machines; without --stage it serves the one that limits the swarm. Ctrl-C (or
SIGTERM, or a notice of preemption) makes it leave without a loss: it hands its part of
the step to a stage peer and goes. A second Ctrl-C, or SIGHUP, ends it at once.
"""

import asyncio
import functools
from collections.abc import Sequence
from pathlib import Path

from scripts import signal_at
from swarm_jax.errors import ConfigError
from swarm_jax.launcher import environment, flags, imports, mesh_option, preemption
from swarm_jax.launcher.workdir import CHECKPOINTS
from swarm_jax.metrics import make_workdir


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.run_server", description=__doc__)
    flags.add_experiment(parser)
    stage_help = "counted from 0 (default: the one that the swarm needs most)"
    parser.add_argument("--stage", type=int, help=stage_help)
    parser.add_argument(
        "--save_parameters",
        type=Path,
        metavar="FILE",
        help="write the stage's parameters by layer (.npz) after the last step",
    )
    parser.add_argument(
        "--checkpoint_dir",
        metavar="FOLDER",
        help="where to save the stage's state, and to restore it from: shared with "
        "others or not, gs://... too (default: WORKDIR/checkpoints)",
    )
    signal_at.add_argument(parser)
    preemption.add_arguments(parser)
    flags.add_network(parser)
    flags.add_process(parser)
    flags.add_worker(parser, name=None)
    mesh_option.add_argument(parser)
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    if args.stage is not None and not 0 <= args.stage < config.swarm.num_stages:
        raise ConfigError(
            f"--stage {args.stage}: this experiment has stages 0 to "
            f"{config.swarm.num_stages - 1} (--config.swarm.num_stages)"
        )
    mesh_option.check(args.mesh, config)
    make_workdir(args.workdir)
    flags.use_device(args.device)
    environment.keep_programs(flags.default_cache_dir())
    return asyncio.run(serve(args, config))


async def serve(args, config) -> int:
    """Serves until told to leave; 0 when that lost nothing, else 1."""
    with imports.many():
        from scripts import meshes, process, serving, wiring
        from swarm_jax.roles.placing import choose_stage
    process.log_to_stderr()
    wiring.prepare_jax(config)
    folder = args.checkpoint_dir or str(args.workdir / CHECKPOINTS)
    mesh = meshes.own_mesh(args.mesh)
    make = functools.partial(wiring.make_device, config, folder, mesh)
    # Its programs are compiled while others are met and the state is fetched.
    device = None if args.stage is None else make(args.stage)
    try:
        async with process.joined(args, config) as network:
            if device is None:
                me = network.node.peer_id
                args.stage = await choose_stage(config, network.directory, me)
                device = await asyncio.to_thread(make, args.stage)
            return await serving.serve(args, config, network, make, device)
    finally:
        if device is not None:
            device.compute.close()


if __name__ == "__main__":
    flags.run_main(main)
