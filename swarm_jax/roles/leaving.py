"""Leaving without a loss: finish what is in flight, hand the sum over, go."""

import asyncio
import logging
from collections.abc import Callable

import numpy as np

from swarm_jax.core.reports import DRAINING, JOINING, OFFLINE
from swarm_jax.core.stage_state import StageState
from swarm_jax.errors import PeerError
from swarm_jax.net.protocols import Message, PeerCalls
from swarm_jax.roles.changes import Changes
from swarm_jax.roles.compute import Compute
from swarm_jax.roles.messages import HandOver, Status, to_header
from swarm_jax.roles.peers import SwarmView
from swarm_jax.roles.relaying import Relaying

logger = logging.getLogger(__name__)

RETRY_S = 0.2
IN_FLIGHT_SHARE = 0.5
"""Of the time to leave in; then what is still in flight is given up."""


class Leaving:
    """Hands this peer's part of the step to a stage peer.

    A peer may go only when a stage peer at the same step has acknowledged, even of an
    empty sum: otherwise the stage's newest parameters could go with it.

    Args:
        swarm: The swarm's fingerprint.
        steps: Steps of the run; who is told to leave after the last one just goes.
        enter: Changes this peer's state, and tells the swarm.
        stop_joining: Gives up a download.
    """

    def __init__(
        self,
        state: StageState,
        calls: PeerCalls,
        compute: Compute,
        view: SwarmView,
        relaying: Relaying,
        changes: Changes,
        *,
        swarm: str,
        steps: int,
        call_timeout_s: float,
        enter: Callable[[str], None],
        stop_joining: Callable[[], None],
    ):
        self._state = state
        self._calls = calls
        self._compute = compute
        self._view = view
        self._relaying = relaying
        self._changes = changes
        self._swarm = swarm
        self._steps = steps
        self._call_timeout_s = call_timeout_s
        self._enter = enter
        self._stop_joining = stop_joining

    async def drain(self, timeout_s: float) -> bool:
        """Leaves; False if time ran out before anybody had taken over.

        What was then still held is run again by others, if the stage has others.
        """
        if self._state.state == JOINING or self._state.step >= self._steps:
            self._enter(OFFLINE)
            self._stop_joining()
            return True
        self._enter(DRAINING)
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout(timeout_s * IN_FLIGHT_SHARE):
                await self._relaying.empty()
        except TimeoutError:
            logger.warning(
                "%d microbatches in flight are given up", len(self._relaying)
            )
            self._relaying.cancel_all()
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._hand_over()
        except TimeoutError:
            logger.warning("nobody took over step %d in time", self._state.step)
            return False
        self._enter(OFFLINE)
        return True

    async def _hand_over(self) -> None:
        """Asks stage peers, again and again, until one has taken over."""
        state = self._state
        while state.state == DRAINING:
            # A prepared gradient is about to be committed, and the sum with it.
            if not state.can_commit:
                for peer in self._view.online(state.stage):
                    if peer != self._calls.peer_id and await self._give(peer):
                        return
            await asyncio.sleep(RETRY_S)
            await self._view.refresh()

    async def _give(self, peer: str) -> bool:
        request, gradients = await self._changes.run(self._read())
        try:
            reply = await self._calls.call(
                peer,
                Message(to_header(request, self._swarm), gradients),
                timeout_s=self._call_timeout_s,
            )
        except PeerError as error:
            logger.warning("hand-over to %s: %s", peer[-6:], error)
            return False
        if reply.header.get("status") != Status.OK:
            return False
        if request.step != self._state.step:
            return False  # committed meanwhile: somebody must have that state too
        logger.info(
            "%s has taken over %d microbatches of step %d",
            peer[-6:],
            len(request.losses),
            request.step,
        )
        return True

    async def _read(self) -> tuple[HandOver, list[np.ndarray]]:
        state = self._state
        request = HandOver(
            round=state.promise,
            generation=state.generation,
            stage=state.stage,
            step=state.step,
            lineage=state.lineage,
            losses=state.ledger.losses,
        )
        gradients = await self._compute.gradient_sum(1.0) if request.losses else []
        return request, gradients
