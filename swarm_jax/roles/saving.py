"""The leader's part in checkpoints: one step of all stages, saved as training goes on."""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Mapping

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.ids import Round
from swarm_jax.core.reports import ONLINE, Report
from swarm_jax.core.saves import common_place, restart_step, save_is_due
from swarm_jax.errors import PeerError
from swarm_jax.net.protocols import Message, PeerCalls
from swarm_jax.roles.messages import (
    CompleteSave,
    MalformedHeader,
    Request,
    SaveState,
    Status,
    read,
    to_header,
)

logger = logging.getLogger(__name__)


class Saving:
    """Has a step saved by all stages, then tells them that it is complete.

    Every peer is asked, since each may keep its own stage's state; one of each stage
    also writes to the folder of the swarm's checkpoints. A step is complete when every
    stage has been saved by one peer at least.
    """

    def __init__(self, config: ExperimentConfig, calls: PeerCalls):
        self._settings = config.checkpoint
        self._steps = config.steps
        self._num_stages = config.swarm.num_stages
        self._calls = calls
        self._swarm = config.swarm_fingerprint()
        self._given_up = 0
        self._tried: tuple[int, int] | None = None
        self._task: asyncio.Task | None = None

    def consider(
        self, reports: Collection[Report], round_: Round, summary: Mapping[str, float]
    ) -> None:
        """Begins to save the step that all stages are at, if that is due.

        To be called in every round.

        Args:
            summary: The run's figures, for the checkpoint.
        """
        if self._task is not None and self._task.done():
            self._task.result()
            self._task = None
        place = common_place(reports, self._num_stages)
        if place is None or place == self._tried or self.under_way:
            return
        due = save_is_due(
            place[1],
            max(restart_step(reports, self._num_stages), self._given_up),
            every_steps=self._settings.every_steps,
            steps=self._steps,
        )
        if due:
            self._tried = place
            stages = self._writers(reports, place)
            self._task = asyncio.ensure_future(
                self._save(stages, place, round_, summary)
            )

    @property
    def under_way(self) -> bool:
        return self._task is not None

    async def finish(self) -> None:
        """Waits for what is being saved."""
        await self._task

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _writers(
        self, reports: Collection[Report], place: tuple[int, int]
    ) -> list[list[str]]:
        """Of each stage its equal peers; the first one writes for all of them.

        It is another one from time to time, so that none is always the slow one.
        """
        stages = []
        for stage in range(self._num_stages):
            peers = {
                r.peer: r.lineage
                for r in reports
                if r.stage == stage
                and r.state == ONLINE
                and (r.generation, r.step) == place
            }
            tally = Counter(peers.values())
            lineage = max(sorted(tally), key=tally.__getitem__, default=None)
            equal = sorted(peer for peer in peers if peers[peer] == lineage)
            turn = place[1] % max(1, len(equal))
            stages.append(equal[turn:] + equal[:turn])
        return stages

    async def _save(
        self,
        stages: list[list[str]],
        place: tuple[int, int],
        round_: Round,
        summary: Mapping[str, float],
    ) -> None:
        generation, step = place
        began_s = asyncio.get_running_loop().time()
        requests = {
            peer: SaveState(
                round=round_,
                generation=generation,
                step=step,
                to_shared=peer == peers[0],
            )
            for peers in stages
            for peer in peers
        }
        digests = await self._ask_all(requests)
        saved = {peer: digest for peer, digest in digests.items() if digest}
        first = [next((p for p in peers if p in saved), None) for peers in stages]
        if None in first:
            lacking = ", ".join(str(s) for s, peer in enumerate(first) if peer is None)
            logger.warning("step %d is not saved: no peer of stage %s", step, lacking)
            if digests.keys() == requests.keys():
                self._given_up = step
            return
        completes = {
            peer: CompleteSave(
                round=round_,
                generation=generation,
                step=step,
                # Of its own stage each knows what it wrote itself.
                digests=[
                    saved[peer if peer in saved and peer in peers else one]
                    for one, peers in zip(first, stages, strict=True)
                ],
                summary=dict(summary),
            )
            for peer in requests
        }
        await self._ask_all(completes)
        took_s = asyncio.get_running_loop().time() - began_s
        logger.info("saved step %d in %.2f s", step, took_s)

    async def _ask_all(self, requests: Mapping[str, Request]) -> dict[str, str]:
        """The digests of who answered: empty of who saved nothing."""
        answers = await asyncio.gather(
            *(self._ask(peer, request) for peer, request in requests.items())
        )
        return {
            peer: digest
            for peer, digest in zip(requests, answers, strict=True)
            if digest is not None
        }

    async def _ask(self, peer: str, request: Request) -> str | None:
        message = Message(to_header(request, self._swarm))
        try:
            timeout_s = self._settings.timeout_s
            reply = await self._calls.call(peer, message, timeout_s=timeout_s)
            if reply.header.get("status") == Status.OK:
                return read(reply.header, "digest", "str")
            if reply.header.get("status") == Status.NOT_SAVED:
                return ""
        except (PeerError, MalformedHeader) as error:
            logger.warning("%s, saving: %s", peer[-6:], error)
        return None
