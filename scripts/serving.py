"""A stage server from its parts, until it is told to leave."""

import argparse
import asyncio
import logging
from collections.abc import Callable

from scripts import memory, process, signal_at, started, wiring
from scripts.process import Network
from scripts.wiring import Device
from swarm_jax.config import ExperimentConfig
from swarm_jax.launcher import preemption
from swarm_jax.metrics import MetricsWriter
from swarm_jax.net.hivemind_node import HivemindNode
from swarm_jax.roles.arrival import Parts
from swarm_jax.roles.compute import Compute
from swarm_jax.roles.migration import MovingPeer
from swarm_jax.roles.stage_server import StageServer

logger = logging.getLogger(__name__)

READY = (
    "ready {start_to_ready_s:.1f} s after its start: {start_compile_s:.1f} s to "
    "compile, {start_download_s:.1f} s to fetch the state meanwhile, "
    "{start_rest_s:.1f} s beside both"
)


async def serve(
    args: argparse.Namespace,
    config: ExperimentConfig,
    network: Network,
    make: Callable[[int], Device],
    device: Device,
) -> int:
    """Serves ``args.stage``, and others when it is told to move.

    Args:
        make: Makes the device of another stage; it need not be ready.
        device: Of the first one.

    Returns:
        0 when it was told to leave, and that lost nothing; else 1.
    """
    node = network.node
    name = args.name or f"stage{args.stage}-{node.peer_id[-6:]}"
    metrics_file = args.workdir / "metrics" / f"{name}.jsonl"
    arrival: dict[str, float] = {}
    metrics = MetricsWriter(metrics_file, lambda: memory.peaks() | arrival)

    def ready(parts: Parts) -> None:
        if not arrival:
            arrival.update(times_to_ready(parts, started.since_start_s()))
            logger.info(READY.format(**arrival))

    def counted(step: int, count: int) -> None:
        if args.signal_at is not None:
            args.signal_at.happened("counted", step)

    def make_server(stage: int, device: Device) -> StageServer:
        def finished() -> None:
            if args.save_parameters is not None:
                params = device.compute.params
                wiring.save_stage(args.save_parameters, config, stage, params)

        server = StageServer(
            config,
            name=name,
            stage=stage,
            calls=peer.door,
            directory=network.directory,
            allreduce=network.allreduce,
            compute=device.compute,
            metrics=metrics,
            checkpoints=device.checkpoints,
            on_count=counted,
            on_ready=lambda: ready(server.arrival.parts),
            on_finished=finished,
        )
        return server

    async def make_another(stage: int) -> StageServer:
        return make_server(stage, await asyncio.to_thread(make, stage))

    peer = MovingPeer(
        config,
        calls=signal_at.watched(network.calls, args.signal_at),
        directory=network.directory,
        make_server=make_another,
    )

    left = False

    async def leave() -> None:
        nonlocal left
        left = await peer.drain(config.tuning.drain_timeout_s)

    announcing = asyncio.ensure_future(announce(args, node, name, device.compute))
    # Its failure is the server's, too, which reports it.
    announcing.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        await process.until_stopped(
            peer.run(make_server(args.stage, device)),
            node,
            notice=preemption.preempted(args.preemption_file, args.preemption_url),
            leave=leave,
        )
    finally:
        announcing.cancel()
    await peer.leave()
    return 0 if left else 1


async def announce(
    args: argparse.Namespace, node: HivemindNode, name: str, compute: Compute
) -> None:
    """Says that this peer is there, but not before it computes: others begin then."""
    await compute.ready()
    process.announce_ready(args, node)
    print(
        f"Stage {args.stage} is served by {node.peer_id} ({name}). Another peer of it:"
    )
    print(process.server_command(args, node, args.stage))
    print(f"A trainer: {process.trainer_command(args, node)}", flush=True)


def times_to_ready(parts: Parts, start_to_ready_s: float) -> dict[str, float]:
    """What a server's first ``on_ready`` adds to its metrics.

    Compiling and fetching go on side by side: ``start_rest_s`` is what neither was part
    of, so that the four do not add up.
    """
    return {
        "start_to_ready_s": start_to_ready_s,
        "start_compile_s": parts.compile_s,
        "start_download_s": parts.download_s,
        "start_rest_s": start_to_ready_s - parts.busy_s,
    }
