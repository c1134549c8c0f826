"""Which peers there are and how fast: from a swarm, a run's metrics, or as told."""

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.stages import stage_work
from swarm_jax.config import ExperimentConfig
from swarm_jax.core.capacity import Load, speeds_of
from swarm_jax.core.reports import JOINING, ONLINE
from swarm_jax.errors import ConfigError
from swarm_jax.metrics import read_records


@dataclass(frozen=True, slots=True)
class Fleet:
    """Attributes:
    speeds: By peer, what it would do if it held the whole model.
    unit: Of the speeds.
    stages: Of each stage the peers that serve it now; None where nothing is served.
    """

    speeds: Mapping[str, float]
    unit: str
    stages: Sequence[Sequence[str]] | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A peer as a record shows it (``core.capacity.Load``)."""

    name: str
    state: str
    queue: int
    tokens_per_s: float


def told(text: str) -> Fleet:
    """Reads ``--fleet``: relative speeds, separated by commas.

    Raises:
        ConfigError: They are no positive numbers.
    """
    try:
        speeds = [float(word) for word in text.split(",")]
    except ValueError:
        speeds = []
    if not speeds or not all(0 < speed < math.inf for speed in speeds):
        raise ConfigError(
            f"--fleet {text}: use positive numbers with commas between them, one for "
            "each peer, for example 100,100,50"
        )
    names = [f"peer{index}" for index in range(len(speeds))]
    return Fleet(dict(zip(names, speeds, strict=True)), "units of --fleet")


def last_seen(workdir: Path, config: ExperimentConfig) -> Fleet:
    """The swarm as a trainer of the last run saw it last.

    Raises:
        ConfigError: There is no such record, or it is of another number of stages.
    """
    files = (workdir / "metrics").glob("swarm*.jsonl")
    path = max(files, key=lambda file: file.stat().st_mtime, default=None)
    records = [] if path is None else [r["stages"] for r in read_records(path)]
    served = [stages for stages in records if any(s["peers"] for s in stages)]
    if not served:
        raise ConfigError(
            f"no peer is in the metrics of {workdir}. Name a running swarm "
            "(--initial_peers), or the peers' relative speeds (--fleet 100,100,50)"
        )
    if len(served[-1]) != config.swarm.num_stages:
        raise ConfigError(
            f"the last run in {workdir} had {len(served[-1])} stages, this experiment "
            f"has {config.swarm.num_stages}: give the overrides that it was started "
            "with"
        )
    stages = [
        {
            peer["peer"]: Seen(
                peer["name"], peer["state"], peer["queue"], peer["tokens_per_s"]
            )
            for peer in stage["peers"]
        }
        for stage in served[-1]
    ]
    return observed(stages, config)


async def serving(args: argparse.Namespace, config: ExperimentConfig) -> Fleet:
    """The running swarm that ``--initial_peers`` names.

    Raises:
        ConfigError: It is of another experiment, or nothing is known of its speeds.
        StartupError: It cannot be reached.
    """
    from scripts import process
    from swarm_jax.roles.peers import SwarmView

    stages = range(config.swarm.num_stages)
    async with process.joined(args, config) as network:
        view = SwarmView(config, network.directory, stages)
        await view.join()
        return observed([view.stages[stage] for stage in stages], config)


def observed(stages: Sequence[Mapping[str, Load]], config: ExperimentConfig) -> Fleet:
    """A fleet from the directory's records, by stage and peer id.

    Peers of about one speed count as equally fast (``tuning.rebalancing.same_speed``).

    Raises:
        ConfigError: No peer serves, or none has been measured yet.
    """
    own = _once(stages)
    if not any(record.tokens_per_s for records in own for record in records.values()):
        raise ConfigError(
            "no peer of this swarm has been measured: wait until a step is done, or "
            "give the peers' relative speeds (--fleet 100,100,50)"
        )
    work = stage_work(config)
    speeds = speeds_of(own, work, config.tuning.rebalancing.same_speed)
    names = _names(own)
    return Fleet(
        {names[p]: s / len(work) for peers in speeds for p, s in peers.items()},
        "tokens/s",
        [[names[peer] for peer in peers] for peers in speeds],
    )


def _once(stages: Sequence[Mapping[str, Load]]) -> list[dict[str, Load]]:
    """Each peer in one stage: of one that has just moved there may be two records."""
    place: dict[str, int] = {}
    for state in (JOINING, ONLINE):
        for stage, records in enumerate(stages):
            place |= {peer: stage for peer, r in records.items() if r.state == state}
    return [
        {peer: r for peer, r in records.items() if place.get(peer) == stage}
        for stage, records in enumerate(stages)
    ]


def _names(stages: Sequence[Mapping[str, Load]]) -> dict[str, str]:
    """By peer id; with the end of the id where several peers have one name."""
    names = {peer: record.name for peers in stages for peer, record in peers.items()}
    often = Counter(names.values())
    return {
        peer: name if often[name] == 1 else f"{name}-{peer[-6:]}"
        for peer, name in names.items()
    }
