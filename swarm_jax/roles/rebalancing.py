"""The leader's part in rebalancing: decides who moves, and tells them so.

The decision is a pure function of the directory's records (``core.rebalancing``), the
same for whoever asks it. Only the leader does: so a move is granted once.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.rebalancing import Move, move_by_queue, rebalance, rescue
from swarm_jax.core.reports import ONLINE
from swarm_jax.errors import PeerError
from swarm_jax.net.protocols import Directory, Message, PeerCalls
from swarm_jax.roles.leadership import Leadership
from swarm_jax.roles.messages import MoveTo, Status, to_header
from swarm_jax.roles.peers import PeerRecord, SwarmView
from swarm_jax.roles.wishes import Wishes

logger = logging.getLogger(__name__)


class Rebalancing:
    """Moves peers to the stages that need them, during one term.

    Args:
        work: Of each stage its cost per token, relative to the others.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        calls: PeerCalls,
        directory: Directory,
        view: SwarmView,
        leadership: Leadership,
        work: Sequence[float] | None,
    ):
        self._rules = config.tuning.rebalancing
        self._refresh_s = config.tuning.directory_refresh_s
        self._timeout_s = config.tuning.control_timeout_s
        self._swarm = config.swarm_fingerprint()
        self._num_stages = config.swarm.num_stages
        self._calls = calls
        self._directory = directory
        self._view = view
        self._leadership = leadership
        self._work = work
        self._wishes = Wishes(directory, view.prefix)
        self._alone_since_s: dict[int, float] = {}

    async def run(self) -> None:
        """Decides for ever; what was told has a period to show in the records."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._rules.period_s
        while True:
            await asyncio.sleep(self._refresh_s)
            moves = await self._wished()
            if not self._has_begun():
                due_s = loop.time() + self._rules.period_s
            elif loop.time() >= due_s:
                due_s += self._rules.period_s
                moves = moves or self._decide()
            else:
                moves = moves or self._rescue()
            if moves:
                await asyncio.gather(*map(self._tell, moves))
                due_s = loop.time() + self._rules.period_s
                await asyncio.sleep(self._rules.period_s)

    async def _wished(self) -> list[Move]:
        """Moves that somebody asked for by hand, where the peer can be spared."""
        moves = []
        for peer, target in (await self._wishes.new()).items():
            source = self._stage_of(peer)
            if source is None or not 0 <= target < self._num_stages:
                logger.warning("asked to move %s, which is not there", peer[-6:])
            elif source != target:
                moves.append(Move(peer, source, target, reason="asked for by hand"))
        return moves

    def _stage_of(self, peer: str) -> int | None:
        for stage, records in self._view.stages.items():
            if peer in records and records[peer].state == ONLINE:
                return stage
        return None

    def _decide(self) -> list[Move]:
        stages = self._stages()
        if self._rules.strategy == "queue":
            move = move_by_queue(stages)
            return [] if move is None else [move]
        if self._rules.strategy == "off":
            return []
        turn = int(self._directory.now_s() // self._rules.period_s)
        ready = {move.target for move in self._rescue()}
        early = self._alone_since_s.keys() - ready
        moves = rebalance(stages, self._rules, turn=turn, work=self._work)
        return [move for move in moves if move.target not in early]

    def _rescue(self) -> list[Move]:
        """For stages that have been down to one peer for long enough."""
        if self._rules.strategy != "gain":
            return []
        now_s = asyncio.get_running_loop().time()
        moves = rescue(self._stages(), self._rules, self._work)
        self._alone_since_s = {
            move.target: self._alone_since_s.get(move.target, now_s) for move in moves
        }
        latest_s = now_s - self._rules.rescue_after_s
        return [m for m in moves if self._alone_since_s[m.target] <= latest_s]

    def _has_begun(self) -> bool:
        """Before, peers are still coming, and nobody's speed is known."""
        return all(
            any(record.step > 0 for record in records.values())
            for records in self._stages()
        )

    def _stages(self) -> list[Mapping[str, PeerRecord]]:
        return [self._view.stages.get(stage, {}) for stage in range(self._num_stages)]

    async def _tell(self, move: Move) -> None:
        logger.info(
            "%s is to move from stage %d to stage %d: %s",
            *(move.peer[-6:], move.source, move.target, move.reason),
        )
        request = MoveTo(
            round=self._leadership.round,
            stage=move.target,
            reason=f"{move.reason:.200}",
        )
        message = Message(to_header(request, self._swarm))
        try:
            timeout_s = self._timeout_s
            reply = await self._calls.call(move.peer, message, timeout_s=timeout_s)
        except PeerError as error:
            logger.warning("%s does not move: %s", move.peer[-6:], error)
            return
        if (status := reply.header.get("status")) != Status.OK:
            logger.warning("%s does not move: %.40s", move.peer[-6:], status)
