"""Feeds and closes the steps of a swarm; stands by while another trainer leads."""

import logging
from collections.abc import Callable, Sequence

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.newest import Newest
from swarm_jax.metrics import MetricsWriter
from swarm_jax.net.protocols import Directory, PeerCalls
from swarm_jax.roles.feeding import Data, Feeder
from swarm_jax.roles.journal import Journal, Totals
from swarm_jax.roles.leader import Leader
from swarm_jax.roles.leadership import Deposed, Leadership
from swarm_jax.roles.lease import Lease
from swarm_jax.roles.peers import SwarmView
from swarm_jax.roles.rebalancing import Rebalancing
from swarm_jax.roles.relay import NextStage
from swarm_jax.roles.saving import Saving
from swarm_jax.roles.standby import Standby, Watched
from swarm_jax.roles.supervised import supervised

logger = logging.getLogger(__name__)


class Trainer:
    """Holds nothing that cannot be recomputed: it may die at any time.

    Args:
        config: The experiment.
        data: Tokens by microbatch id.
        steps: Gets a record per step that this trainer closes.
        swarm: Gets a record per second.
        learning_rate: Of a step, counted from 0; for the records.
        server_command: The command that starts a peer of a stage, for people.
        restart_if_lost: Asked whether the run may go back, to a checkpoint or to step
            0, when a stage's state is gone.
        stage_work: Of each stage its cost per token, relative to the others; None:
            equal.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        calls: PeerCalls,
        directory: Directory,
        data: Data,
        steps: MetricsWriter,
        swarm: MetricsWriter,
        learning_rate: Callable[[int], float],
        server_command: Callable[[int], str],
        restart_if_lost: Callable[[], bool] = lambda: False,
        stage_work: Sequence[float] | None = None,
    ):
        self._config = config
        self._calls = calls
        self._directory = directory
        self._stage_work = stage_work
        self._data = data
        self._server_command = server_command
        self._restart_if_lost = restart_if_lost
        self._view = SwarmView(config, directory, range(config.swarm.num_stages))
        self._journal = Journal(
            config, self._view, steps=steps, swarm=swarm, learning_rate=learning_rate
        )
        self._newest = Newest()
        self._lease = Lease(
            config,
            directory,
            Standby(config, calls),
            key=f"{self._view.prefix}.trainer",
            trainer=calls.peer_id,
            data_digest=data.digest,
            newest=self._newest,
        )

    @property
    def totals(self) -> Totals:
        return self._journal.totals

    async def run(self) -> Totals:
        """Leads, or stands by, until the run is finished.

        Raises:
            Diverged: The model gave non-finite values and the config says stop.
            ConfigError: Another trainer of this swarm has other data.
        """
        await self._view.join()
        await self._calls.serve(Watched(self._config.swarm_fingerprint()))
        return await supervised(
            self._lead_in_turns(), self._view.keep_fresh(), self._journal.watch()
        )

    async def _lead_in_turns(self) -> Totals:
        while True:
            number = await self._lease.acquire()
            self._journal.begin_term(number)
            try:
                await self._lead(number)
                return self.totals
            except Deposed as error:
                logger.warning("another trainer leads: %s", error)
                self._lease.saw(error.promise.number)

    async def _lead(self, number: int) -> None:
        first_stage = NextStage(self._config, 0, self._calls, self._view, [])
        leadership = Leadership(self._config, self._calls, self._calls.peer_id, number)
        saving = Saving(self._config, self._calls)
        rebalancing = Rebalancing(
            self._config,
            calls=self._calls,
            directory=self._directory,
            view=self._view,
            leadership=leadership,
            work=self._stage_work,
        )
        leader = Leader(
            self._config,
            leadership=leadership,
            view=self._view,
            data=self._data,
            feeder=Feeder(self._config, self._data, first_stage),
            journal=self._journal,
            saving=saving,
            newest=self._newest,
            server_command=self._server_command,
            restart_if_lost=self._restart_if_lost,
        )
        try:
            await supervised(leader.lead(), self._lease.keep(number), rebalancing.run())
        finally:
            saving.close()
            leadership.close()
            self._journal.end_term()
            await self._lease.release(number)
