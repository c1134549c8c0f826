"""Serves one stage of the model to the swarm.

    python -m scripts.run_server --config configs/tiny.py --stage 1 \\
        --initial_peers /ip4/10.0.0.5/tcp/4001/p2p/12D3... --workdir runs/tiny

``scripts.run_dht`` prints the command with its own address. Start as many as you like
for each stage, on any machines. Ctrl-C stops it.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags
from swarm_jax.metrics import MetricsWriter, make_workdir


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.run_server", description=__doc__)
    flags.add_experiment(parser)
    parser.add_argument("--stage", type=int, required=True, help="counted from 0")
    parser.add_argument(
        "--save_parameters",
        type=Path,
        metavar="FILE",
        help="write the stage's parameters by layer (.npz) after the last step",
    )
    parser.add_argument(
        "--kill_at",
        type=_step_and_count,
        metavar="STEP:COUNT",
        help="to test recovery: SIGKILL this process when it has counted COUNT "
        "microbatches of STEP (from 0)",
    )
    flags.add_network(parser)
    flags.add_process(parser)
    flags.add_worker(parser, name=None)
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    if not 0 <= args.stage < config.swarm.num_stages:
        raise ConfigError(
            f"--stage {args.stage}: this experiment has stages 0 to "
            f"{config.swarm.num_stages - 1} (--config.swarm.num_stages)"
        )
    make_workdir(args.workdir)
    flags.use_device(args.device)
    asyncio.run(serve(args, config))


async def serve(args, config) -> None:
    """Runs a stage server until SIGINT or SIGTERM."""
    from scripts import process, wiring
    from swarm_jax.roles.stage_server import StageServer

    process.log_to_stderr()
    wiring.prepare_jax(config)
    compute = wiring.make_compute(config, args.stage, inline=False)

    def finished() -> None:
        if args.save_parameters is not None:
            wiring.save_stage(args.save_parameters, config, args.stage, compute.params)

    def counted(step: int, count: int) -> None:
        if (step, count) == args.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        async with process.joined(args, config) as network:
            name = args.name or f"stage{args.stage}-{network.node.peer_id[-6:]}"
            server = StageServer(
                config,
                name=name,
                stage=args.stage,
                calls=network.calls,
                directory=network.directory,
                allreduce=network.allreduce,
                compute=compute,
                metrics=MetricsWriter(args.workdir / "metrics" / f"{name}.jsonl"),
                on_count=counted,
                on_finished=finished,
            )
            process.announce_ready(args, network.node)
            next_command = process.server_command(args, network.node, args.stage)
            print(f"Stage {args.stage} is served by {network.node.peer_id} ({name}).")
            print(f"Another peer of it: {next_command}")
            print(
                f"A trainer: {process.trainer_command(args, network.node)}", flush=True
            )
            await process.until_stopped(server.run(), network.node)
            await server.leave()
    finally:
        compute.close()


def _step_and_count(text: str) -> tuple[int, int]:
    step, count = text.split(":")
    return int(step), int(count)


if __name__ == "__main__":
    flags.run_main(main)
