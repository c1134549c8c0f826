"""A whole swarm in one event loop: real roles over the in-process network.

With ``sim.clock.run_virtual`` it runs on virtual time, so that timeouts, heartbeats and
bans cost nothing and every run is the same.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from swarm_jax.config import ExperimentConfig
from swarm_jax.net.local import LocalNetwork
from swarm_jax.roles.checkpoints import Checkpoints
from swarm_jax.roles.compute import Compute
from swarm_jax.roles.feeding import Data
from swarm_jax.roles.journal import Totals
from swarm_jax.roles.migration import MovingPeer
from swarm_jax.roles.stage_server import StageServer
from swarm_jax.roles.trainer import Trainer


class Records(list):
    """Metrics kept in memory."""

    def write(self, **record: Any) -> None:
        self.append(record)


class SimulatedSwarm:
    """Stage servers and one trainer.

    Args:
        make_compute: Gives the device of a new peer of a stage.
        peers_per_stage: How many peers each stage starts with.
        make_checkpoints: Gives the place where a new peer of a stage saves.
        prepare_s: How long a peer that moves compiles for its new stage.

    Attributes:
        servers: The server of every peer ever started, by peer id ("stage0-0", ...);
            who moves keeps the name of its first stage.
        on_server: Called with the peer id when a peer has a new server.
        ready: At which step each peer began to take microbatches.
        finished: Peers that have the state after the last step.
        steps: Records of the trainer, one per step.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        data: Data,
        make_compute: Callable[[int], Compute],
        peers_per_stage: Sequence[int],
        network: LocalNetwork | None = None,
        make_checkpoints: Callable[[int], Checkpoints | None] = lambda stage: None,
        prepare_s: float = 0.0,
    ):
        self.config = config
        self.network = network or LocalNetwork(heartbeat_s=config.tuning.heartbeat_s)
        self.servers: dict[str, StageServer] = {}
        self.computes: dict[str, Compute] = {}
        self.peer_steps: dict[str, Records] = {}
        self.ready: dict[str, int] = {}
        self.finished: set[str] = set()
        self.steps = Records()
        self.seconds = Records()
        self.data = data
        self._make_compute = make_compute
        self._make_checkpoints = make_checkpoints
        self._prepare_s = prepare_s
        self._peers_per_stage = peers_per_stage
        self.on_server: Callable[[str], None] = lambda peer: None
        self._started: Counter[int] = Counter()
        self._tasks: dict[str, asyncio.Task] = {}

    async def run(self) -> Totals:
        """Starts everybody, trains to the end, stops everybody."""
        for stage, count in enumerate(self._peers_per_stage):
            for _ in range(count):
                self.start_peer(stage)
        try:
            return await self.make_trainer("trainer").run()
        finally:
            for peer in list(self._tasks):
                await self.kill(peer)

    def start_peer(self, stage: int) -> str:
        """Starts one more peer of a stage; returns its id."""
        number = self._started[stage]
        self._started[stage] += 1
        name = f"stage{stage}-{number}"
        self.peer_steps[name] = Records()
        directory, allreduce = (
            self.network.directory(name),
            self.network.allreduce(name),
        )

        async def make_another(stage: int) -> StageServer:
            await asyncio.sleep(self._prepare_s)
            return make_server(stage)

        peer = MovingPeer(
            self.config,
            calls=self.network.calls(name),
            directory=directory,
            make_server=make_another,
        )

        def make_server(stage: int) -> StageServer:
            compute = self.computes[name] = self._make_compute(stage)
            server = self.servers[name] = StageServer(
                self.config,
                name=name,
                stage=stage,
                calls=peer.door,
                directory=directory,
                allreduce=allreduce,
                compute=compute,
                metrics=self.peer_steps[name],
                checkpoints=self._make_checkpoints(stage),
                on_ready=lambda: self.ready.setdefault(name, server.state.step),
                on_finished=lambda: self.finished.add(name),
            )
            self.on_server(name)
            return server

        task = self._tasks[name] = asyncio.ensure_future(peer.run(make_server(stage)))
        task.add_done_callback(lambda _: self.network.kill(name))
        return name

    @property
    def alive(self) -> dict[str, StageServer]:
        """Servers that have not been killed, by peer id."""
        return {peer: self.servers[peer] for peer in self._tasks}

    @property
    def crashed(self) -> dict[str, BaseException | None]:
        """Servers that have ended by themselves, and why."""
        return {
            peer: None if task.cancelled() else task.exception()
            for peer, task in self._tasks.items()
            if task.done()
        }

    def kill_now(self, peer: str) -> asyncio.Task:
        """Ends a peer as SIGKILL would: nothing is said, nothing is handed over."""
        self.network.kill(peer)
        task = self._tasks.pop(peer)
        task.cancel()
        return task

    async def kill(self, peer: str) -> None:
        """``kill_now``, and waits until its task has ended."""
        await asyncio.wait([self.kill_now(peer)])

    def make_trainer(self, peer: str, **options: Any) -> Trainer:
        return Trainer(
            self.config,
            calls=self.network.calls(peer),
            directory=self.network.directory(peer),
            data=self.data,
            steps=self.steps,
            swarm=self.seconds,
            learning_rate=lambda step: 0.0,
            server_command=lambda stage: f"start a peer of stage {stage}",
            **options,
        )
