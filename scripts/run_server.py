"""Serves one stage of the model to the swarm.

    python -m scripts.run_server --config configs/tiny.py --stage 1 \\
        --initial_peers /ip4/10.0.0.5/tcp/4001/p2p/12D3... --workdir runs/tiny

``scripts.run_dht`` prints the command with its own address. Start as many as you like,
on any machines; without --stage it serves the one that limits the swarm. Ctrl-C (or
SIGTERM, or a notice of preemption) makes it leave without a loss: it hands its part of
the step to a stage peer and goes. A second Ctrl-C, or SIGHUP, ends it at once.
"""

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path

from scripts import signal_at
from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags, imports, preemption
from swarm_jax.metrics import MetricsWriter, make_workdir


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
    signal_at.add_argument(parser)
    preemption.add_arguments(parser)
    flags.add_network(parser)
    flags.add_process(parser)
    flags.add_worker(parser, name=None)
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    if args.stage is not None and not 0 <= args.stage < config.swarm.num_stages:
        raise ConfigError(
            f"--stage {args.stage}: this experiment has stages 0 to "
            f"{config.swarm.num_stages - 1} (--config.swarm.num_stages)"
        )
    make_workdir(args.workdir)
    flags.use_device(args.device)
    return asyncio.run(serve(args, config))


async def serve(args, config) -> int:
    """Serves until told to leave; 0 when that lost nothing, else 1."""
    with imports.many():
        from scripts import process, wiring
        from swarm_jax.roles.placing import choose_stage
    process.log_to_stderr()
    wiring.prepare_jax(config)
    with contextlib.ExitStack() as closing:
        make = functools.partial(wiring.make_compute, config, inline=False)
        # Takes seconds; who has joined, and does not answer, is dropped from the DHT.
        compute = None if args.stage is None else make(args.stage)
        async with process.joined(args, config) as network:
            if compute is None:
                me = network.node.peer_id
                args.stage = await choose_stage(config, network.directory, me)
                compute = await asyncio.to_thread(make, args.stage)
            closing.callback(compute.close)
            return await serve_stage(args, config, network, compute)


async def serve_stage(args, config, network, compute) -> int:
    from scripts import process, wiring
    from swarm_jax.roles.stage_server import StageServer

    node, stage = network.node, args.stage
    name = args.name or f"stage{stage}-{node.peer_id[-6:]}"

    def finished() -> None:
        if args.save_parameters is not None:
            wiring.save_stage(args.save_parameters, config, stage, compute.params)

    def counted(step: int, count: int) -> None:
        if args.signal_at is not None:
            args.signal_at.happened("counted", step)

    server = StageServer(
        config,
        name=name,
        stage=stage,
        calls=signal_at.watched(network.calls, args.signal_at),
        directory=network.directory,
        allreduce=network.allreduce,
        compute=compute,
        metrics=MetricsWriter(args.workdir / "metrics" / f"{name}.jsonl"),
        on_count=counted,
        on_finished=finished,
    )
    process.announce_ready(args, node)
    print(f"Stage {stage} is served by {node.peer_id} ({name}). Another peer of it:")
    print(process.server_command(args, node, stage))
    print(f"A trainer: {process.trainer_command(args, node)}", flush=True)
    left = False

    async def leave() -> None:
        nonlocal left
        left = await server.drain(config.tuning.drain_timeout_s)

    await process.until_stopped(
        server.run(),
        node,
        notice=preemption.preempted(args.preemption_file, args.preemption_url),
        leave=leave,
    )
    await server.leave()
    return 0 if left else 1


if __name__ == "__main__":
    flags.run_main(main)
