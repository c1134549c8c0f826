"""A swarm as a fluid: throughput without microbatches, for days of hundreds of peers.

All peers are equally fast. A stage is as fast as the peers that serve it together, the
swarm as fast as its slowest stage. What peers publish of themselves are the records of
the live directory (``roles/peers.py``), so that ``core/`` decides here as it does live.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from swarm_jax.core.capacity import Stages
from swarm_jax.core.reports import JOINING, ONLINE
from swarm_jax.roles.peers import PeerRecord

TOKENS_PER_S = 100.0
"""Of one peer in a stage of work 1."""

IN_FLIGHT_PER_PEER = 4
"""Microbatches that the trainer keeps in the swarm."""


@dataclass(slots=True)
class FluidPeer:
    """What a peer publishes and what it does.

    Attributes:
        stage: Where it is, or is on the way to.
        serves: Which stage it works for now.
        started: Whether it has served before; a new machine has not.
        gone: It was taken away, and its record has not expired yet.
    """

    stage: int
    serves: int | None
    started: bool
    gone: bool = False


class FluidSwarm:
    """Who serves what, what that yields, and what it looks like from outside.

    Args:
        peers: How many there are at first, in the best allocation.
        work: Of each stage its cost per token.
    """

    def __init__(self, peers: int, work: Sequence[float]):
        self.work = tuple(work)
        self.peers: dict[str, FluidPeer] = {}
        self._named = 0
        for stage, count in enumerate(best_allocation(peers, self.work)):
            for _ in range(count):
                self.add(stage, serves=stage)

    def add(self, stage: int, serves: int | None) -> str:
        """A peer's id; one that serves nothing is a new machine that still starts."""
        peer_id = f"peer{self._named:06}"
        self._named += 1
        self.peers[peer_id] = FluidPeer(stage, serves, started=serves is not None)
        return peer_id

    def started(self) -> list[list[str]]:
        """Of each stage its peers, those on their way to it too, but no new machine."""
        stages: list[list[str]] = [[] for _ in self.work]
        for peer_id, peer in self.peers.items():
            if peer.started and not peer.gone:
                stages[peer.stage].append(peer_id)
        return stages

    def present(self) -> list[int]:
        """Of each stage how many records it has."""
        counts = Counter(peer.stage for peer in self.peers.values())
        return [counts[stage] for stage in range(len(self.work))]

    def serving(self) -> list[int]:
        """Of each stage how many peers work for it."""
        counts = [0] * len(self.work)
        for peer in self.peers.values():
            if peer.serves is not None and not peer.gone:
                counts[peer.serves] += 1
        return counts

    def downloads(self, stage: int) -> int:
        """Peers that serve nothing yet and are on their way to ``stage``."""
        return sum(
            peer.stage == stage and peer.serves is None for peer in self.peers.values()
        )

    def throughput(self) -> float:
        """Tokens per second."""
        return _throughput(self.serving(), self.work)

    def optimal(self) -> float:
        """Tokens per second of the best allocation of the peers that have started."""
        count = sum(peer.started and not peer.gone for peer in self.peers.values())
        return _throughput(best_allocation(count, self.work), self.work)

    def records(self, error: float, chance: np.random.Generator) -> Stages:
        """What the directory says, of peers just taken away too.

        Args:
            error: Relative standard deviation of measured throughputs.
        """
        online = [0] * len(self.work)
        for peer in self.peers.values():
            online[peer.stage] += peer.serves == peer.stage
        queues = [_shares(*pair) for pair in zip(self._queues(), online, strict=True)]
        stages: list[dict[str, PeerRecord]] = [{} for _ in self.work]
        for peer_id, peer in self.peers.items():
            serves = peer.serves == peer.stage
            rate = TOKENS_PER_S / self.work[peer.stage] if serves else 0.0
            if error:
                rate *= max(0.1, 1 + error * chance.standard_normal())
            stages[peer.stage][peer_id] = PeerRecord(
                name=peer_id,
                stage=peer.stage,
                state=ONLINE if serves else JOINING,
                generation=0,
                step=0,
                queue=next(queues[peer.stage]) if serves else 0,
                tokens_per_s=rate,
            )
        return stages

    def _queues(self) -> list[int]:
        serving = self.serving()
        capacities = [n / cost for n, cost in zip(serving, self.work, strict=True)]
        return queue_lengths(capacities, IN_FLIGHT_PER_PEER * sum(serving))


def queue_lengths(capacities: Sequence[float], in_flight: int) -> list[int]:
    """Microbatches at each stage of a closed system, as if each were one M/M/1 queue.

    The slowest stage holds nearly all, and of the others the slower ones more: a stage
    of capacity ``c`` holds ``x / (c - x)``, where ``x`` is what flows through all. None
    holds any where one has no capacity: then the trainer waits.
    """
    if not min(capacities):
        return [0] * len(capacities)
    low, high = 0.0, min(capacities)
    for _ in range(60):
        flow = (low + high) / 2
        held = sum(flow / (capacity - flow) for capacity in capacities)
        low, high = (flow, high) if held < in_flight else (low, flow)
    return [round(low / (capacity - low)) for capacity in capacities]


@cache
def best_allocation(peers: int, work: tuple[float, ...]) -> tuple[int, ...]:
    """Peers of each stage; one after the other goes where it is slowest."""
    counts = [0] * len(work)
    for _ in range(peers):
        counts[min(range(len(work)), key=lambda s: counts[s] / work[s])] += 1
    return tuple(counts)


def _shares(held: int, peers: int) -> Iterator[int]:
    """``held`` spread over ``peers``, the first ones taking what is left over."""
    for index in range(peers):
        yield held // peers + (index < held % peers)


def _throughput(counts: Sequence[int], work: Sequence[float]) -> float:
    return min(
        count * TOKENS_PER_S / cost for count, cost in zip(counts, work, strict=True)
    )
