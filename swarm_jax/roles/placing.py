"""Finds out, before a peer has a stage, which one needs it most."""

import asyncio

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.placement import place
from swarm_jax.core.reports import JOINING, ONLINE
from swarm_jax.net.protocols import Directory
from swarm_jax.roles.peers import SwarmView

REFRESHES = 2
"""Until what others started with us have said is there to read."""


async def choose_stage(
    config: ExperimentConfig, directory: Directory, peer_id: str
) -> int:
    """The stage that limits the swarm, shared out with others that look for one now.

    Raises:
        ConfigError: This run's name belongs to another experiment.
    """
    view = SwarmView(config, directory, range(config.swarm.num_stages))
    await view.join()
    key = f"{view.prefix}.newcomers"
    await directory.store(
        key, peer_id, True, expires_in_s=config.tuning.directory_expiry_s
    )
    await asyncio.sleep(REFRESHES * config.tuning.directory_refresh_s)
    newcomers = set(await directory.get(key)) | {peer_id}
    await view.refresh()
    stages = [
        {
            peer: record.tokens_per_s
            for peer, record in view.stages[stage].items()
            if record.state in (ONLINE, JOINING)
        }
        for stage in range(config.swarm.num_stages)
    ]
    newcomers -= {peer for peers in stages for peer in peers}
    return place([peers.values() for peers in stages], newcomers)[peer_id]
