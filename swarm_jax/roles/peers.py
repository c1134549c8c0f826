"""Who is in the swarm: what peers publish of themselves, and a cached view of it."""

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from swarm_jax.config import ExperimentConfig, leaves
from swarm_jax.core.reports import DRAINING, OFFLINE, ONLINE
from swarm_jax.errors import ConfigError
from swarm_jax.net.protocols import Directory

MAX_TEXT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecord:
    """What a stage server publishes.

    Attributes:
        name: For people; not unique.
        state: ONLINE, JOINING, DRAINING or OFFLINE.
        generation: How often the run went back, to a checkpoint or to step 0.
        queue: Microbatches it holds.
        tokens_per_s: Moving average of its own compute; 0 before the first one.
    """

    name: str
    stage: int
    state: str
    generation: int
    step: int
    queue: int
    tokens_per_s: float


class SwarmView:
    """Reads the records of some stages every ``directory_refresh_s``.

    Args:
        config: Names the keys and the periods.
        directory: Where records are kept.
        of_stages: Those that are read; each costs questions to many peers.

    Attributes:
        newest: (generation, step) of the newest state that any record told of.
    """

    def __init__(
        self, config: ExperimentConfig, directory: Directory, of_stages: Iterable[int]
    ):
        self.directory = directory
        self._config = config
        self._tuning = config.tuning
        self._of_stages = tuple(of_stages)
        self._swarm = config.swarm_fingerprint()
        self.prefix = f"{config.run_id}.{self._swarm}"
        self._stages: dict[int, dict[str, PeerRecord]] = {}
        self.newest = 0, 0

    def stage_key(self, stage: int) -> str:
        return f"{self.prefix}.stage{stage}"

    @property
    def _run_key(self) -> str:
        return f"{self._config.run_id}.experiments"

    @property
    def stages(self) -> Mapping[int, Mapping[str, PeerRecord]]:
        """Live records by stage and peer id, as last read."""
        return self._stages

    def online(self, stage: int) -> list[str]:
        """Peers that take work for ``stage``."""
        records = self._stages.get(stage, {})
        return sorted(peer for peer, r in records.items() if r.state == ONLINE)

    def donors(self, stage: int) -> list[str]:
        """Peers that have the state of ``stage``, as far as they say."""
        records = self._stages.get(stage, {})
        having = ONLINE, DRAINING
        return sorted(peer for peer, r in records.items() if r.state in having)

    def newest_step(self, stage: int) -> int:
        """Of the peers of ``stage``; 0 when there are none."""
        records = self._stages.get(stage, {})
        return max((r.step for r in records.values() if r.state != OFFLINE), default=0)

    def everyone(self) -> list[str]:
        """All peers of all stages that have not said goodbye; each once.

        Of one that has just moved there may be records in two stages.
        """
        return sorted(
            {
                peer
                for records in self._stages.values()
                for peer, record in records.items()
                if record.state != OFFLINE
            }
        )

    async def join(self) -> None:
        """Makes sure that nobody uses this run's name for another experiment.

        Peers of different experiments never meet, since all keys carry a fingerprint:
        a peer with the wrong config would wait alone and not know why.

        Raises:
            ConfigError: Somebody does; it names the first settings that differ.
        """
        for fingerprint, record in (await self.directory.get(self._run_key)).items():
            if fingerprint != self._swarm and isinstance(record.value, dict):
                raise ConfigError(_difference(self._config, record.value))
        await self.refresh()

    async def refresh(self) -> None:
        found = await asyncio.gather(
            *(self.directory.get(self.stage_key(stage)) for stage in self._of_stages)
        )
        self._stages = {
            stage: {
                peer: record
                for peer, entry in entries.items()
                if (record := _read(entry.value, stage)) is not None
            }
            for stage, entries in zip(self._of_stages, found, strict=True)
        }
        self._note_newest()

    def _note_newest(self) -> None:
        """Anybody can write to the directory: a step that the run lacks is nonsense."""
        for records in self._stages.values():
            for record in records.values():
                if record.step <= self._config.steps:
                    self.newest = max(self.newest, (record.generation, record.step))

    async def keep_fresh(self) -> None:
        """Refreshes for ever, and keeps the run's name taken."""
        settings, expiry_s = _settings(self._config), self._tuning.directory_expiry_s
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            if loop.time() >= due_s:
                due_s = loop.time() + expiry_s / 3
                await self.directory.store(
                    self._run_key,
                    self._swarm,
                    settings,
                    expires_in_s=expiry_s,
                )
            await self.refresh()
            await asyncio.sleep(self._tuning.directory_refresh_s)

    async def publish(self, peer_id: str, record: PeerRecord) -> None:
        await self.directory.store(
            self.stage_key(record.stage),
            peer_id,
            asdict(record),
            expires_in_s=self._tuning.directory_expiry_s,
        )


def _settings(config: ExperimentConfig) -> dict[str, str]:
    """What the swarm's fingerprint is made of, as text."""
    return {
        name: repr(value)
        for name, value in leaves(config).items()
        if not name.startswith(("tuning.", "validation.", "checkpoint."))
    }


def _difference(config: ExperimentConfig, theirs: Mapping[str, Any]) -> str:
    ours = _settings(config)
    theirs = {
        name: value
        for name, value in theirs.items()
        if isinstance(name, str) and isinstance(value, str)
    }
    differing = [
        f"{name:.{MAX_TEXT}} (here {ours.get(name)}, there "
        f"{theirs.get(name, 'absent'):.{MAX_TEXT}})"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    return (
        f"Another experiment runs under the name {config.run_id!r} here; it differs in "
        f"{', '.join(differing[:3])}. Start this one with the same --config and "
        "overrides, or give it a name of its own: --config.run_id=NAME"
    )


def _read(value: Any, stage: int) -> PeerRecord | None:
    """Anybody can write to the directory: what is no record of ours is passed over."""
    try:
        record = PeerRecord(**value)
        right = (
            record.stage == stage
            and all(
                isinstance(text, str) and len(text) <= MAX_TEXT
                for text in (record.name, record.state)
            )
            and all(
                type(number) is int and number >= 0
                for number in (record.generation, record.step, record.queue)
            )
            and isinstance(record.tokens_per_s, float)
            and 0 <= record.tokens_per_s < math.inf
        )
    except TypeError:
        return None
    return record if right else None
