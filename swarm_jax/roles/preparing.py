"""Asks every stage to all-reduce its gradient, and learns from void rounds."""

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import Any

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.bans import Bans
from swarm_jax.core.closing import Close, most_suspect
from swarm_jax.core.ledger import ledger_digest
from swarm_jax.roles.leadership import VOID, Leadership, accepted
from swarm_jax.roles.messages import MalformedHeader, Prepare, Status, read

logger = logging.getLogger(__name__)

VOIDS_BEFORE_LEAVING_OUT = 2
LONGEST_TIMEOUTS = 20
"""Longest time that a peer is left out, in all-reduce time-outs: what it costs then."""


class GradientDiverged(Exception):
    """Every microbatch was finite, but their sum in ``stage`` is not."""

    def __init__(self, stage: int):
        super().__init__(f"the gradient of stage {stage} is not finite")
        self.stage = stage


class Preparing:
    """The first half of closing a step (design, section 5, exact prepare).

    Two stage peers may be unable to reach each other for good: after two void rounds
    the most named peer is left out of the step, and its microbatches run again. Each
    time it is left out for twice as long, so the longer it lasts, the less it costs.
    """

    def __init__(self, config: ExperimentConfig, leadership: Leadership):
        self._leadership = leadership
        self._tied_stages = config.tied_stages
        self._timeout_s = (
            config.tuning.allreduce_timeout_s + config.tuning.control_timeout_s
        )
        longest_s = LONGEST_TIMEOUTS * config.tuning.allreduce_timeout_s
        self._bans = Bans(config.tuning.ban_s, longest_s)
        self._void_rounds: list[dict[str, list[str]]] = []
        self.left_out: frozenset[str] = frozenset()

    async def prepare(self, action: Close, loss_tokens: int) -> float | None:
        """All-reduces in every stage.

        Returns:
            The gradient's norm over all stages; None when the round was void.

        Raises:
            GradientDiverged: The norm is not finite.
        """
        digests = {
            stage: {report.peer: ledger_digest(report.counted) for report in reports}
            for stage, reports in action.groups.items()
        }
        joiners = {
            stage: {report.peer: ledger_digest(()) for report in reports}
            for stage, reports in action.joiners.items()
        }
        groups = {stage: digests[stage] | joiners.get(stage, {}) for stage in digests}
        replies = await self._ask_all(action, groups, loss_tokens)
        for stage, group in groups.items():
            statuses = {replies.get(peer, {}).get("status") for peer in group}
            if Status.NONFINITE in statuses:
                raise GradientDiverged(stage)
        ready = accepted(replies)
        missing = {p for group in groups.values() for p in group} - ready
        missing |= {
            p for g in digests.values() for p in g if _norm(replies.get(p)) is None
        }
        if missing:
            joining = {peer for group in joiners.values() for peer in group}
            self._void(action.step, missing, joining, replies, groups)
            return None
        norms = [_norm(replies[min(group)]) for group in digests.values()]
        return math.sqrt(math.fsum(norms))

    async def _ask_all(
        self, action: Close, groups: Mapping[int, dict[str, str]], loss_tokens: int
    ) -> dict[str, Mapping[str, Any]]:
        tied, donors = self._tied(action, groups)
        requests = {
            peer: Prepare(
                round=self._leadership.round,
                generation=action.generation,
                step=action.step,
                group=group,
                tied=tied if stage in self._tied_stages else frozenset(),
                donors=donors if stage in self._tied_stages else [],
                loss_tokens=loss_tokens,
            )
            for stage, group in groups.items()
            for peer in group
        }
        return await self._leadership.ask_together(requests, timeout_s=self._timeout_s)

    def _tied(
        self, action: Close, groups: Mapping[int, Mapping[str, str]]
    ) -> tuple[frozenset[str], list[str]]:
        """Who reduces the tied gradient together, or who has it reduced already."""
        if action.donors:
            return frozenset(), list(action.donors)
        closing = self._tied_stages & groups.keys()
        return frozenset(peer for stage in closing for peer in groups[stage]), []

    def _void(
        self,
        step: int,
        missing: set[str],
        joining: set[str],
        replies: Mapping[str, Mapping[str, Any]],
        groups: Mapping[int, Mapping[str, str]],
    ) -> None:
        lacked = {
            peer: _lacked(replies.get(peer))
            for peer in sorted(missing)
            if replies.get(peer) != VOID
        }
        at_fault = {peer for peer in lacked if peer not in replies}.union(
            *lacked.values()
        )
        if at_fault & joining:
            # A joiner that fails must not hold the others up twice.
            self._leave_out(at_fault & joining)
            return
        self._void_rounds.append(lacked)
        logger.warning(
            "step %d: all-reduce is void, no result from %s",
            step,
            ", ".join(peer[-6:] for peer in sorted(missing)),
        )
        if len(self._void_rounds) >= VOIDS_BEFORE_LEAVING_OUT:
            suspect = most_suspect(self._void_rounds, groups, self.left_out)
            if suspect is not None:
                logger.warning("step %d is closed without %s", step, suspect[-6:])
                self._leave_out({suspect})

    def _leave_out(self, peers: set[str]) -> None:
        now_s = asyncio.get_running_loop().time()
        for peer in peers:
            self._bans.ban(peer, now_s)
        self.left_out |= peers

    def committed(self) -> None:
        """The step is over: who was left out takes part again when its ban is over."""
        now_s = asyncio.get_running_loop().time()
        self._void_rounds = []
        self.left_out = frozenset(
            peer for peer in self.left_out if self._bans.left_s(peer, now_s)
        )


def _norm(reply: Mapping[str, Any] | None) -> float | None:
    try:
        return read(reply or {}, "squared_norm", "float")
    except MalformedHeader:
        return None


def _lacked(reply: Mapping[str, Any] | None) -> list[str]:
    try:
        return sorted(read(reply or {}, "lacked", "frozenset[str]"))
    except MalformedHeader:
        return []
