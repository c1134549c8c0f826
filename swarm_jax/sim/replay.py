"""Days of a spot market, replayed on a fluid swarm under one strategy.

Peers come and are taken away as a trace says. The strategy sees the directory's
records and says who moves, and moving costs time. How fast the swarm is, over how fast
the same peers could be, is what counts.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from swarm_jax.core.capacity import Stages
from swarm_jax.core.rebalancing import SAFE_PEERS, Move
from swarm_jax.sim.fluid import FluidSwarm
from swarm_jax.sim.market import HOUR_S, Change, SpotMarket
from swarm_jax.sim.strategies import Strategy

BOTH_TURNS = 2
"""Decisions are pure: as long as no record changes, more turns say nothing new."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What it takes to change the stage, and to start.

    Assumed for a stage of a large model. ``scripts.benchmark checkpoints`` measures a
    small one: see ``docs/elasticity.md``.

    Attributes:
        step_s: Length of a step. Who is to move serves its old stage until the step
            ends, and then none for the three times that follow.
        drain_s: Until nothing is in flight at the peer any more.
        state_bytes: Parameters and moments of a stage: 1.01 billion parameters in 4
            stages, in float32.
        download_bytes_per_s: Of each peer: 500 Mb/s.
        upload_bytes_per_s: That each stage peer has for those who download from it.
        compile_s: Until the program of the new stage is ready.
        start_s: How long a new machine downloads and compiles. Until then it counts
            neither for the swarm nor for the best allocation.
        expiry_s: How long the record of a peer that was taken away is seen.
    """

    step_s: float = 30.0
    drain_s: float = 2.0
    state_bytes: float = 3e9
    download_bytes_per_s: float = 60e6
    upload_bytes_per_s: float = 30e6
    compile_s: float = 15.0
    start_s: float = 120.0
    expiry_s: float = 6.0

    def migration_s(self, donors: int, downloads: int) -> float:
        """Drain, download, compile.

        Args:
            donors: Peers that serve the new stage; if none does, the state comes from
                a checkpoint.
            downloads: Peers that fetch it now, this one included.
        """
        rate = self.download_bytes_per_s
        if donors:
            rate = min(rate, donors * self.upload_bytes_per_s / downloads)
        return self.drain_s + self.state_bytes / rate + self.compile_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """What all strategies face.

    Attributes:
        taken_by_stage: Whether a stage is drawn for each peer that is taken away, each
            as likely as the others; else the peer is drawn from all.
        measurement_error: Relative standard deviation of measured throughputs.
    """

    market: SpotMarket = field(default_factory=SpotMarket)
    costs: Costs = field(default_factory=Costs)
    num_stages: int = 4
    taken_by_stage: bool = False
    measurement_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """From ``at_s`` until the next sample, in tokens per second.

    Attributes:
        peers: How many have started, whatever they do now.
    """

    at_s: float
    throughput: float
    optimal: float
    peers: int


class Replay:
    """One trace under one strategy; ``seed`` draws who is taken away, and the like.

    Attributes:
        samples: How fast the swarm was and could have been, so far.
        moves: Those that were begun.
    """

    def __init__(
        self,
        scenario: Scenario,
        strategy: Strategy,
        trace: Iterable[Change],
        seed: int,
    ):
        self.samples: list[Sample] = []
        self.moves: list[Move] = []
        self._swarm = FluidSwarm(scenario.market.peers, [1.0] * scenario.num_stages)
        self._costs = scenario.costs
        self._error = scenario.measurement_error
        self._strategy = strategy
        self._end_s = scenario.market.hours * HOUR_S
        self._by_stage = scenario.taken_by_stage
        self._victims, self._newcomers, self._errors = (
            np.random.default_rng([seed, stream]) for stream in (1, 2, 3)
        )
        self._now_s = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._quiet_turns = 0
        for change in trace:
            self._at(change.at_s, self._come if change.comes else self._take_away)
        self._at(strategy.period_s, self._turn)

    def run(self) -> list[Sample]:
        """Samples of the whole trace."""
        self._note()
        while self._events[0][0] < self._end_s:
            self._now_s, _, happens = heapq.heappop(self._events)
            happens()
        return self.samples

    def _at(self, at_s: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), happens))

    def _note(self) -> None:
        """Something has changed."""
        self._quiet_turns = 0
        self.samples.append(
            Sample(
                at_s=self._now_s,
                throughput=self._swarm.throughput(),
                optimal=self._swarm.optimal(),
                peers=sum(map(len, self._swarm.started())),
            )
        )

    def _come(self) -> None:
        stage = self._strategy.newcomer(self._records(), self._newcomers)
        peer_id = self._swarm.add(stage, serves=None)
        self._at(self._now_s + self._costs.start_s, lambda: self._serve(peer_id))
        self._note()

    def _take_away(self) -> None:
        stages = [peers for peers in self._swarm.started() if peers]
        if not stages:
            return
        if not self._by_stage:
            stages = [[peer for peers in stages for peer in peers]]
        peers = stages[self._victims.integers(len(stages))]
        peer_id = peers[self._victims.integers(len(peers))]
        self._swarm.peers[peer_id].gone = True
        self._at(self._now_s + self._costs.expiry_s, lambda: self._expire(peer_id))
        self._note()

    def _expire(self, peer_id: str) -> None:
        del self._swarm.peers[peer_id]
        self._note()
        if min(self._swarm.present()) < SAFE_PEERS:
            self._begin(self._strategy.rescue(self._records()))

    def _turn(self) -> None:
        turn = round(self._now_s / self._strategy.period_s)
        self._at((turn + 1) * self._strategy.period_s, self._turn)
        if self._quiet_turns < BOTH_TURNS or self._error:
            self._quiet_turns += 1
            self._begin(self._strategy.decide(self._records(), turn))

    def _records(self) -> Stages:
        return self._swarm.records(self._error, self._errors)

    def _begin(self, moves: Sequence[Move]) -> None:
        step_s = self._costs.step_s
        boundary_s = math.ceil(self._now_s / step_s) * step_s
        for move in moves:
            peer = self._swarm.peers[move.peer]
            if not peer.gone:
                peer.stage = move.target
                self.moves.append(move)
                self._at(boundary_s, partial(self._leave_stage, move.peer))
        if moves:
            self._note()

    def _leave_stage(self, peer_id: str) -> None:
        peer = self._swarm.peers.get(peer_id)
        if peer is None or peer.gone:
            return
        peer.serves = None
        took_s = self._costs.migration_s(
            donors=self._swarm.serving()[peer.stage],
            downloads=self._swarm.downloads(peer.stage),
        )
        self._at(self._now_s + took_s, lambda: self._serve(peer_id))
        self._note()

    def _serve(self, peer_id: str) -> None:
        """It has the state and the program of its stage."""
        peer = self._swarm.peers.get(peer_id)
        if peer and not peer.gone:
            peer.serves, peer.started = peer.stage, True
            self._note()


def percent(samples: Sequence[Sample], from_s: float, until_s: float) -> float:
    """Tokens trained between two times over those of the best allocation."""
    times = np.array([sample.at_s for sample in samples] + [until_s])
    lasted_s = np.diff(np.clip(times, from_s, until_s))
    trained = lasted_s @ np.array([sample.throughput for sample in samples])
    possible = lasted_s @ np.array([sample.optimal for sample in samples])
    return 100 * float(trained / possible)
