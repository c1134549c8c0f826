"""A stage's all-reduce, and beside it that of the table which two stages share.

A head that is tied to the embedding makes the first and the last stage hold a copy of
one table each. The copies stay equal, since both are updated with one gradient: the sum
over both stages. It is reduced over the peers of both, in a round of its own. When one
of the two has committed the step and the other gets it again, the first cannot take
part again: so its peers give the gradient that they have applied.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

import numpy as np

from swarm_jax.core.reports import DRAINING, ONLINE
from swarm_jax.core.stage_state import StageState
from swarm_jax.errors import Abandoned, AllReduceVoid, PeerError
from swarm_jax.net.protocols import AllReduce, Message, PeerCalls, spec_of
from swarm_jax.roles.changes import Changes
from swarm_jax.roles.compute import Compute
from swarm_jax.roles.messages import FetchTied, Prepare, Status, refusal, to_header

logger = logging.getLogger(__name__)

Arrays = list[np.ndarray]


class Reducing:
    """This peer's part in the all-reduces of a step.

    Args:
        prefix: Of the names of all groups.
        swarm: The swarm's fingerprint.
        timeout_s: Bound on an all-reduce.
    """

    def __init__(
        self,
        state: StageState,
        calls: PeerCalls,
        allreduce: AllReduce,
        compute: Compute,
        changes: Changes,
        *,
        prefix: str,
        swarm: str,
        timeout_s: float,
    ):
        self._state = state
        self._calls = calls
        self._allreduce = allreduce
        self._compute = compute
        self._changes = changes
        self._prefix = prefix
        self._swarm = swarm
        self._timeout_s = timeout_s

    def fits(self, request: Prepare) -> bool:
        """Whether it says how the tied gradient is reduced, if this stage has one."""
        is_named = self._calls.peer_id in request.tied
        if self._compute.tied_leaf is None:
            return not request.tied and not request.donors
        return not is_named if request.donors else is_named

    async def mean(
        self, request: Prepare, contribution: Sequence[np.ndarray]
    ) -> Arrays:
        """The step's gradient, leaf by leaf.

        Args:
            contribution: This peer's, each leaf for the size of its group.

        Raises:
            AllReduceVoid: Something of it did not come.
        """
        round_ = "/".join(map(str, (request.step, *request.round)))
        group_id = f"{self._state.stage}/{round_}"
        at = self._compute.tied_leaf
        if at is None:
            return await self._average(group_id, request.group, contribution)
        own = [*contribution[:at], *contribution[at + 1 :]]
        if request.donors:
            sharing = self._fetch(request, contribution[at])
        else:
            tied = [contribution[at]]
            sharing = self._average(f"tied/{round_}", request.tied, tied)
        means, shared = await _both(
            self._average(group_id, request.group, own), sharing
        )
        return [*means[:at], *shared, *means[at:]]

    async def give(self, request: FetchTied) -> Message:
        """The tied gradient of the step before, for a stage that gets it again."""
        return await self._changes.read(self._give(request))

    async def _give(self, request: FetchTied) -> Message:
        state = self._state
        if state.state not in (ONLINE, DRAINING):
            return refusal(Status.NOT_ONLINE)
        position = state.generation, state.step
        if position != (request.generation, request.step + 1) or not state.can_replay:
            return refusal(Status.UNKNOWN_STATE)
        try:
            tied = await self._compute.previous_tied()
        except Abandoned:
            return refusal(Status.UNKNOWN_STATE)
        return Message({"status": Status.OK}, [tied])

    async def _average(
        self, name: str, peers: Iterable[str], arrays: Sequence[np.ndarray]
    ) -> Arrays:
        return await self._allreduce.average(
            f"{self._prefix}/{name}", sorted(peers), arrays, timeout_s=self._timeout_s
        )

    async def _fetch(self, request: Prepare, like: np.ndarray) -> Arrays:
        """From the first that has it: what they applied is the same everywhere."""
        question = FetchTied(generation=request.generation, step=request.step)
        message = Message(to_header(question, self._swarm))
        for donor in request.donors:
            try:
                reply = await self._calls.call(
                    donor, message, timeout_s=self._timeout_s
                )
            except PeerError as error:
                logger.warning("no tied gradient from %s: %s", donor[-6:], error)
                continue
            is_right = reply.header.get("status") == Status.OK
            if is_right and list(map(spec_of, reply.arrays)) == [spec_of(like)]:
                return list(reply.arrays)
        raise AllReduceVoid(
            tuple(request.donors), f"nobody gave the tied gradient of {request.step}"
        )


async def _both(*rounds: Coroutine[Any, Any, Arrays]) -> list[Arrays]:
    """Runs both to their ends, so that whoever is lacked is named by both.

    Raises:
        AllReduceVoid: One of them is void.
    """
    results = await asyncio.gather(*rounds, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors:
        if not isinstance(error, AllReduceVoid):
            raise error
    if errors:
        missing = {peer for error in errors for peer in error.missing}
        reason = "; ".join(error.reason for error in errors)
        raise AllReduceVoid(tuple(sorted(missing)), reason)
    return results
