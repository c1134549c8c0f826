"""A real swarm on one machine behind shaped links, whose accelerators sleep.

All roles run in this process's event loop, each with a libp2p daemon of its own; every
byte between them passes the proxy.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.launcher.links import Proxy
from swarm_jax.net.hivemind_allreduce import HivemindAllReduce
from swarm_jax.net.hivemind_calls import HivemindCalls
from swarm_jax.net.hivemind_directory import HivemindDirectory
from swarm_jax.net.hivemind_node import HivemindNode, start_node
from swarm_jax.net.protocols import ArraySpec
from swarm_jax.roles.messages import Status, refusal
from swarm_jax.roles.stage_server import StageServer
from swarm_jax.roles.trainer import Trainer
from swarm_jax.sim.modelled import ModelledModel, ModelledTokens
from swarm_jax.sim.slept import SleptCompute, incompressible
from swarm_jax.sim.swarm import Records

PATIENT_S = 600.0
"""All timeouts: what is measured is the links' speed, and nobody is to be given up."""
JOIN_RTT_S = 0.3
MICROBATCHES = 4096
"""Of the only step, which no measurement reaches the end of."""


def wan_config(
    *,
    num_stages: int,
    sequence_length: int,
    in_flight: int,
    steps: int = 1,
    microbatches: int = MICROBATCHES,
) -> ExperimentConfig:
    """One sequence per microbatch, steps that do not end, endless patience.

    Args:
        microbatches: Of a step; a power of two.
    """
    model = ModelledModel(num_layers=num_stages, sequence_length=sequence_length)
    config = ExperimentConfig(run_id="wan", steps=steps, model=model)
    config.data.target_batch_size = microbatches
    config.swarm.microbatch_size = 1
    config.swarm.num_stages = num_stages
    config.optimizer.warmup_steps = 0
    config.validation.sequences = 1
    tuning = config.tuning
    tuning.rebalancing.strategy = "off"
    tuning.microbatches_in_flight = tuning.max_queue = in_flight
    for name in ("heartbeat", "relay_timeout", "control_timeout", "lease"):
        setattr(tuning, f"{name}_s", PATIENT_S)
    tuning.directory_expiry_s = tuning.allreduce_timeout_s = PATIENT_S
    return config.check()


@contextlib.asynccontextmanager
async def running(
    config: ExperimentConfig,
    proxy: Proxy,
    *,
    specs: Sequence[ArraySpec],
    compute_s: float,
    on_count: Callable[[int], None],
    line: Mapping[str, float] = MappingProxyType({}),
    peers_per_stage: int = 1,
    gradient: np.ndarray | None = None,
    on_commit: Callable[[int, int], None] = lambda stage, step: None,
) -> AsyncIterator[None]:
    """All stages' peers and a trainer, at work.

    Args:
        specs: Of what crosses a boundary, either way.
        compute_s: Forward and backward of one microbatch in one stage.
        on_count: Called with the stage when it has counted a microbatch.
        line: Of each peer, with a shorter round trip until it has joined, or the DHT
            would give it up; libp2p measures it when it connects, and lets as much be
            under way as it needs.
        gradient: Of a stage: float32; None where nothing is reduced.
        on_commit: Called for each peer when it has committed a step.
    """
    loop, boundary = asyncio.get_running_loop(), incompressible(specs)
    protocol = f"swarm_jax.wan.{config.swarm_fingerprint()}"
    nodes: list[HivemindNode] = []
    async with contextlib.AsyncExitStack() as closing:

        async def join(name: str) -> HivemindCalls:
            rtt_s = min(JOIN_RTT_S, line.get("rtt_s", 0.0))
            proxy.set_line(name, **{**line, "rtt_s": rtt_s})
            _, host, _, announced = await asyncio.to_thread(proxy.options, name)
            node = await start_node(
                initial_peers=nodes[0].visible_maddrs() if nodes else (),
                host_maddrs=[host],
                announce_maddrs=[announced],
                silence_s=PATIENT_S,
            )
            nodes.append(node)
            proxy.set_line(name, **line)
            closing.push_async_callback(node.close)
            calls = HivemindCalls(
                node,
                protocol,
                heartbeat_s=PATIENT_S,
                max_message_bytes=config.tuning.max_message_bytes,
                busy=refusal(Status.BUSY),
                stall_s=PATIENT_S,
                dial_timeout_s=PATIENT_S,
                same_host=False,
            )
            closing.push_async_callback(calls.close)
            return calls

        async def serve(stage: int, number: int) -> StageServer:
            name = f"stage{stage}-{number}"
            calls = await join(name)
            allreduce = await HivemindAllReduce.create(
                nodes[-1],
                f"{protocol}.allreduce",
                heartbeat_s=PATIENT_S,
                wire=config.swarm.allreduce_wire,
                same_host=False,
            )
            closing.push_async_callback(allreduce.close)
            is_last = stage == config.swarm.num_stages - 1
            shares = {"forward": 1 / 3, "backward": 1.0 if is_last else 2 / 3}
            return StageServer(
                config,
                name=name,
                stage=stage,
                calls=calls,
                directory=HivemindDirectory(nodes[-1]),
                allreduce=allreduce,
                compute=SleptCompute(
                    config,
                    stage,
                    lambda name: compute_s * shares.get(name, 0.0),
                    boundary,
                    gradient,
                ),
                metrics=_Commits(stage, on_commit),
                on_count=lambda step, counted: on_count(stage),
            )

        servers = [
            await serve(stage, number)
            for stage in range(config.swarm.num_stages)
            for number in range(peers_per_stage)
        ]
        trainer = Trainer(
            config,
            calls=await join("trainer"),
            directory=HivemindDirectory(nodes[-1]),
            data=ModelledTokens(config),
            steps=Records(),
            swarm=Records(),
            learning_rate=lambda step: 0.0,
            server_command=lambda stage: f"stage {stage}",
        )
        tasks = [loop.create_task(role.run()) for role in (*servers, trainer)]
        closing.push_async_callback(_end, tasks)
        yield


class _Commits:
    """Metrics of a peer, of which only the time is of interest."""

    def __init__(self, stage: int, on_commit: Callable[[int, int], None]):
        self._stage = stage
        self._on_commit = on_commit

    def write(self, **record: Any) -> None:
        self._on_commit(self._stage, record["step"])


async def _end(tasks: Sequence[asyncio.Task]) -> None:
    """Passes on why one of them ended before it was told to."""
    ended = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in ended:
        task.result()
