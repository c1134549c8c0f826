"""The leader's part in rebalancing: decides who moves, and tells them so.

The decision is a pure function of the directory's records (``core.rebalancing``). The
leader asks it, and nobody else: so no two peers can be wrong about whose turn it is.
"""

import asyncio
import logging
import math
from collections.abc import Sequence

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.rebalancing import Move, move_by_queue, rebalance, rescue
from swarm_jax.core.reports import ONLINE
from swarm_jax.errors import PeerError
from swarm_jax.net.protocols import Directory, Message, PeerCalls
from swarm_jax.roles.leadership import Leadership
from swarm_jax.roles.messages import MoveTo, Status, to_header
from swarm_jax.roles.peers import SwarmView
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

    async def run(self) -> None:
        """Decides for ever; what was told has a period to show in the records."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._rules.period_s
        while True:
            await asyncio.sleep(self._refresh_s)
            moves = await self._wished()
            if loop.time() >= due_s:
                due_s += self._rules.period_s
                moves = moves or self._decide()
            else:
                moves = moves or self._rescue()
            if moves:
                await asyncio.gather(*map(self._tell, moves))
                due_s = loop.time() + self._rules.period_s
                await asyncio.sleep(self._rules.period_s)
