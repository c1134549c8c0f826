"""A peer that serves one stage after another (design, section 6, rebalance).

It moves when the leader says so, as if it left its old stage and joined the new one: it
hands over what it has counted, and fetches the new stage's state. Until it has taken
part in a step there, it keeps the old stage's state, and goes back if that stage has
lost all its other peers meanwhile.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.reports import JOINING, OFFLINE
from swarm_jax.core.stage_state import Position
from swarm_jax.net.protocols import (
    ArraySpec,
    Directory,
    Message,
    PeerCalls,
    Service,
)
from swarm_jax.roles.arrival import Migration
from swarm_jax.roles.peers import SwarmView
from swarm_jax.roles.stage_server import StageServer

logger = logging.getLogger(__name__)

ABANDONED_READS = 3
"""Reads of the directory without a peer of the old stage after which it has none."""


class _Kept(NamedTuple):
    """The state of the stage that this peer has left."""

    stage: int
    position: Position
    arrays: Sequence[np.ndarray]


class Door:
    """``PeerCalls`` whose service may be replaced: the newest one answers."""

    def __init__(self, calls: PeerCalls):
        self.peer_id = calls.peer_id
        self._calls = calls
        self._service: Service | None = None

    async def serve(self, service: Service) -> None:
        is_first, self._service = self._service is None, service
        if is_first:
            await self._calls.serve(self)

    async def call(self, peer: str, message: Message, *, timeout_s: float) -> Message:
        return await self._calls.call(peer, message, timeout_s=timeout_s)

    def is_same_host(self, peer: str) -> bool:
        return self._calls.is_same_host(peer)

    def admit(
        self, sender: str, header: Mapping[str, object], specs: Sequence[ArraySpec]
    ) -> Message | None:
        return self._service.admit(sender, header, specs)

    async def handle(self, sender: str, message: Message) -> Message:
        return await self._service.handle(sender, message)


class MovingPeer:
    """Serves a stage, and another one when it is told to.

    Args:
        make_server: Makes the server of another stage, with a device of its own, which
            need not be ready.

    Attributes:
        door: ``PeerCalls`` for its servers.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        calls: PeerCalls,
        directory: Directory,
        make_server: Callable[[int], Awaitable[StageServer]],
    ):
        self._config = config
        self._directory = directory
        self.door = Door(calls)
        self._make_server = make_server
        self._server: StageServer | None = None
        self._kept: _Kept | None = None

    async def run(self, server: StageServer) -> None:
        """Serves until cancelled, or the device fails.

        Args:
            server: The first one. Each is closed when this peer moves on.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._server = server
            try:
                began_s = await self._serve(server)
                back, self._kept = self._kept, _Kept(*await server.snapshot())
            finally:
                server.close()
            left_s = loop.time()
            stage = server.told_to_move.result()
            logger.info("moving from stage %d to stage %d", self._kept.stage, stage)
            async with self._expected(server):
                server = await self._make_server(stage)
                server.arrival.migration = Migration(
                    from_stage=self._kept.stage,
                    began_s=began_s,
                    drain_s=left_s - began_s,
                    prepare_s=loop.time() - left_s,
                )
                server.known_step = self._kept.position.step
                if back is not None and back.stage == stage:
                    await server.take(back.position, back.arrays)

    async def drain(self, timeout_s: float) -> bool:
        """Leaves without a loss; False if nobody took over in time."""
        return self._server is None or await self._server.drain(timeout_s)

    async def leave(self) -> None:
        """Tells the directory that this peer is gone."""
        if self._server is not None:
            await self._server.leave()

    async def _serve(self, server: StageServer) -> float:
        """Returns when a stage peer has taken over: when it was told to move."""
        running = asyncio.ensure_future(server.run())
        watching = asyncio.ensure_future(self._watch_old_stage(server))
        try:
            while True:
                moving = server.told_to_move
                await asyncio.wait(
                    {running, moving}, return_when=asyncio.FIRST_COMPLETED
                )
                began_s = asyncio.get_running_loop().time()
                if running.done():
                    running.result()
                async with self._expected(server):
                    leaves = await self._leaves(server)
                if leaves:
                    await server.leave()
                    return began_s
                logger.warning("nobody took over: this peer stays in its stage")
                await server.announce_arrival(OFFLINE)
                server.stay()
        finally:
            running.cancel()
            watching.cancel()
            await asyncio.wait({running, watching})

    @contextlib.asynccontextmanager
    async def _expected(self, server: StageServer) -> AsyncIterator[None]:
        """Says meanwhile in the new stage that this peer is on its way to it.

        Or another one would be sent there in its place.
        """

        async def announce() -> None:
            while True:
                await server.announce_arrival(JOINING)
                await asyncio.sleep(self._config.tuning.directory_refresh_s)

        announcing = asyncio.ensure_future(announce())
        try:
            yield
        finally:
            announcing.cancel()
            await asyncio.wait({announcing})

    async def _leaves(self, server: StageServer) -> bool:
        """Whether this peer may go: what it holds is with others, or of no use.

        Without its old stage no step can be closed, so who is called back may wait for
        a commit in vain. It has taken part in no step here; others have the state.
        """
        tuning = self._config.tuning
        if self._kept is None or server.told_to_move.result() != self._kept.stage:
            return await server.drain(tuning.drain_timeout_s)
        return await server.drain(tuning.control_timeout_s) or server.has_mates

    async def _watch_old_stage(self, server: StageServer) -> None:
        """Calls this peer back if the stage that it has left has nobody else.

        As long as it has not taken part in a step of the new one: then its old stage's
        state is out of date.
        """
        if self._kept is None:
            return
        old_stage = self._kept.stage
        view = SwarmView(self._config, self._directory, [old_stage])
        reads_without = 0
        while not server.has_committed:
            await asyncio.sleep(self._config.tuning.directory_refresh_s)
            await view.refresh()
            records = view.stages[old_stage].values()
            is_empty = all(record.state == OFFLINE for record in records)
            reads_without = reads_without + 1 if is_empty else 0
            if reads_without == ABANDONED_READS:
                logger.warning("stage %d has lost its peers: going back", old_stage)
                server.move(old_stage)
        self._kept = None
