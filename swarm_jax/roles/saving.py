"""The leader's part in checkpoints: all stages save one step while they train on."""

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
    SaveState,
    Status,
    read,
    to_header,
)

logger = logging.getLogger(__name__)


class Saving:
    """Has a step saved by all stages, then tells them that it is complete.

    Of the peers of a stage that share a folder one writes. So shared storage gets each
    stage once; and where there is none, every peer has its own stage's state. A step is
    complete when every stage has been saved somewhere.
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
            peers = self._equal_peers(reports, place)
            self._task = asyncio.ensure_future(
                self._save(peers, place, round_, summary)
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

    def _equal_peers(
        self, reports: Collection[Report], place: tuple[int, int]
    ) -> list[list[Report]]:
        """Of each stage the peers whose state is to be saved.

        The order changes, so that it is not always the same one that writes.
        """
        stages = []
        for stage in range(self._num_stages):
            peers = [
                r
                for r in sorted(reports, key=lambda r: r.peer)
                if (r.stage, r.state) == (stage, ONLINE)
                and (r.generation, r.step) == place
            ]
            tally = Counter(r.lineage for r in peers)
            lineage = max(sorted(tally), key=tally.__getitem__, default=None)
            equal = [r for r in peers if r.lineage == lineage]
            turn = place[1] % max(1, len(equal))
            stages.append(equal[turn:] + equal[:turn])
        return stages

    async def _save(
        self,
        stages: list[list[Report]],
        place: tuple[int, int],
        round_: Round,
        summary: Mapping[str, float],
    ) -> None:
        generation, step = place
        began_s = asyncio.get_running_loop().time()
        writers = [_one_per_folder(peers) for peers in stages]
        save = SaveState(round=round_, generation=generation, step=step)
        answers = await self._ask_all(
            {r.peer: save for stage in writers for r in stage}
        )
        saved = [
            {r.folder: answers[r.peer] for r in stage if answers.get(r.peer)}
            for stage in writers
        ]
        if lacking := [str(stage) for stage, found in enumerate(saved) if not found]:
            stages_text = ", ".join(lacking)
            logger.warning(
                "step %d is not saved: no peer of stage %s", step, stages_text
            )
            if all(r.peer in answers for stage in writers for r in stage):
                self._given_up = step
            return
        completes = {
            r.peer: CompleteSave(
                round=round_,
                generation=generation,
                step=step,
                digests=[found.get(r.folder, min(found.values())) for found in saved],
                summary=dict(summary),
            )
            for peers in stages
            for r in peers
        }
        await self._ask_all(completes)
        took_s = asyncio.get_running_loop().time() - began_s
        logger.info("saved step %d in %.2f s", step, took_s)

    async def _ask_all(
        self, requests: Mapping[str, SaveState | CompleteSave]
    ) -> dict[str, str]:
        """The digests of who answered: empty of who saved nothing."""
        answers = await asyncio.gather(
            *(self._ask(peer, request) for peer, request in requests.items())
        )
        return {
            peer: digest
            for peer, digest in zip(requests, answers, strict=True)
            if digest is not None
        }

    async def _ask(self, peer: str, request: SaveState | CompleteSave) -> str | None:
        message = Message(to_header(request, self._swarm))
        try:
            timeout_s = self._settings.timeout_s
            reply = await self._calls.call(peer, message, timeout_s=timeout_s)
            if reply.header.get("status") == Status.OK:
                return read(reply.header, "digest", "str")
            if reply.header.get("status") == Status.NOT_SAVED:
                return ""
        except (PeerError, MalformedHeader) as error:
            logger.warning("saving step %d: %s", request.step, error)
        return None


def _one_per_folder(peers: Collection[Report]) -> list[Report]:
    """The first of those that share a folder; none of those that have no folder."""
    writers: dict[str, Report] = {}
    for report in peers:
        if report.folder:
            writers.setdefault(report.folder, report)
    return list(writers.values())
