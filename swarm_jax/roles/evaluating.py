"""Runs validation sets through a swarm as its guest: nothing in it is changed."""

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.ids import NO_ROUND
from swarm_jax.errors import Diverged, PeerError, StartupError
from swarm_jax.net.protocols import Directory, Message, PeerCalls
from swarm_jax.roles.feeding import Data, Feeder
from swarm_jax.roles.messages import Locate, MalformedHeader, Status, read, to_header
from swarm_jax.roles.peers import SwarmView
from swarm_jax.roles.relay import ModelDiverged, NextStage
from swarm_jax.roles.supervised import supervised

logger = logging.getLogger(__name__)

TRIES = 10
PAUSE_S = 0.5


class Place(NamedTuple):
    """Which parameters: of which return of the run to a checkpoint, and which step."""

    generation: int
    step: int


class Evaluation:
    """Mean losses of the parameters that a swarm serves, trained on or not.

    Args:
        server_command: The command that starts a peer of a stage, for people.
        wait_s: How long a stage may be without a peer that serves.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        calls: PeerCalls,
        directory: Directory,
        data: Data,
        server_command: Callable[[int], str],
        wait_s: float = 30.0,
    ):
        self._config = config
        self._calls = calls
        self._server_command = server_command
        self._wait_s = wait_s
        self._stages = range(config.swarm.num_stages)
        self._view = SwarmView(config, directory, self._stages)
        first_stage = NextStage(config, 0, calls, self._view, [])
        self._feeder = Feeder(config, data, first_stage)

    async def run(self) -> tuple[int, dict[str, float]]:
        """The step, and the loss in nats per token by metric, all of its parameters.

        Raises:
            StartupError: A stage has no peer, or the swarm trains on so fast that no
                step lasts as long as the evaluation.
            Diverged: The loss is not finite.
        """
        await self._view.join()
        return await supervised(self._evaluate(), self._view.keep_fresh())

    async def _evaluate(self) -> tuple[int, dict[str, float]]:
        for _ in range(TRIES):
            place = await self._common_place()
            losses, failures = await self._feeder.validation_losses(place, NO_ROUND)
            if not failures:
                return place.step, losses
            for failure in failures:
                if isinstance(failure, ModelDiverged):
                    raise Diverged(f"step {place.step}: {failure}")
            logger.info("not all of step %d: %s", place.step, failures[0])
            await asyncio.sleep(PAUSE_S)
        raise StartupError(
            f"In {TRIES} tries no step lasted until all of it was evaluated, the last "
            f"time because {failures[0]}. Ask for less with "
            "--config.validation.sequences, or stop the trainer meanwhile: servers "
            "keep what they have"
        )

    async def _common_place(self) -> Place:
        """The newest place that a peer of every stage has; waits while there is none.

        Raises:
            StartupError: There was none for too long.
        """
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._wait_s
        while True:
            places = {stage: await self._places(stage) for stage in self._stages}
            if common := set.intersection(*places.values()):
                return max(common)
            if loop.time() >= give_up_s:
                raise StartupError(self._why_not(places))
            await asyncio.sleep(PAUSE_S)
            await self._view.refresh()

    async def _places(self, stage: int) -> set[Place]:
        found = await asyncio.gather(*map(self._locate, self._view.online(stage)))
        return {place for place in found if place is not None}

    async def _locate(self, peer: str) -> Place | None:
        header = to_header(Locate(), self._config.swarm_fingerprint())
        try:
            reply = await self._calls.call(
                peer,
                Message(header),
                timeout_s=self._config.tuning.control_timeout_s,
            )
            if reply.header.get("status") != Status.OK:
                return None
            return Place(*(read(reply.header, name, "int") for name in Place._fields))
        except (PeerError, MalformedHeader) as error:
            logger.warning("peer %s does not say where it is: %s", peer[-6:], error)
            return None

    def _why_not(self, places: dict[int, set[Place]]) -> str:
        if empty := [stage for stage, found in places.items() if not found]:
            return (
                f"Stages without a peer: {', '.join(map(str, empty))}. Start one: "
                f"{self._server_command(empty[0])}"
            )
        newest = {stage: max(found).step for stage, found in places.items()}
        return (
            f"The stages are at different steps: {newest}. Start a trainer, which "
            "brings them together"
        )
