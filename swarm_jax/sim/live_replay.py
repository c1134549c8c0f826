"""An hour of a spot market under the real roles, to see whether the fluid is right.

The same traces, rules of rebalancing and costs as in ``replay.py``, but with trainer,
stage servers, directory and network as they run live, on virtual time. No real swarm is
as fast as the sum of its devices: what it loses without any fault, at the ends of steps
above all, is measured first and taken out of the comparison.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from swarm_jax.config import ExperimentConfig, RebalancingConfig
from swarm_jax.net.local import Event, LocalNetwork
from swarm_jax.roles.messages import MoveTo
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.fluid import best_allocation
from swarm_jax.sim.market import HOUR_S, SpotMarket, draw_trace
from swarm_jax.sim.modelled import ModelledCompute, ModelledTokens, modelled_config
from swarm_jax.sim.replay import Costs, Replay, Scenario, percent
from swarm_jax.sim.strategies import by_gain
from swarm_jax.sim.swarm import SimulatedSwarm

MICROBATCH_S = {"forward": 1.0, "backward": 2.0}
"""On one peer of any stage; the last one computes both in one operation."""

LATENCY_S = 0.02
FAULT_FREE_S = 900.0
NO_END = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """What is replayed.

    Attributes:
        microbatches: Per step; a power of two.
        prepare_s: Until a mover has the program of its new stage.
    """

    market: SpotMarket = field(
        default_factory=lambda: SpotMarket(
            hours=1.0,
            peers=32,
            daily_swing=0.0,
            shortage=0.0,
            preemptions_per_hour=(0.4, 0.4),
            reclaimed=(0.1, 0.2),
            refill_s=600.0,
        )
    )
    num_stages: int = 4
    microbatches: int = 128
    prepare_s: float = 15.0
    start_s: float = 120.0
    rules: RebalancingConfig = field(
        default_factory=lambda: RebalancingConfig(migration_s=25.0)
    )


@dataclass(frozen=True, slots=True)
class Confirmed:
    """One seed, in percent of the best allocation.

    Attributes:
        roles_pct: Of the real roles, less what they lose without faults.
        fluid_pct: Of the fluid.
        moves: That the real roles made.
    """

    roles_pct: float
    fluid_pct: float
    moves: int


def confirm(what: Slice, seed: int) -> Confirmed:
    """Replays one seed with both."""
    quiet = _LiveReplay(what, seed=None)
    quiet_share = run_virtual(quiet.run(FAULT_FREE_S))
    live = _LiveReplay(what, seed)
    share = run_virtual(live.run(what.market.hours * HOUR_S))
    return Confirmed(100 * share / quiet_share, fluid_percent(what, seed), live.moves)


def fluid_percent(what: Slice, seed: int) -> float:
    """The fluid's, with the costs that moves have here."""
    costs = Costs(
        step_s=what.rules.period_s / 10,
        drain_s=2 * sum(MICROBATCH_S.values()),
        state_bytes=0.0,
        compile_s=what.prepare_s,
        start_s=what.start_s,
        expiry_s=_config(what).tuning.directory_expiry_s,
    )
    scenario = Scenario(market=what.market, costs=costs, num_stages=what.num_stages)
    trace = draw_trace(what.market, seed)
    samples = Replay(scenario, by_gain(what.rules), trace, seed).run()
    return percent(samples, 0.0, what.market.hours * HOUR_S)


def _config(what: Slice) -> ExperimentConfig:
    config = modelled_config(
        num_stages=what.num_stages, steps=NO_END, microbatches=what.microbatches
    )
    config.checkpoint.every_steps = 0
    config.tuning.microbatches_in_flight = 2 * what.market.peers
    config.tuning.max_queue = what.market.peers
    config.tuning.relay_timeout_s = 600.0
    config.tuning.directory_refresh_s = 1.0
    config.tuning.drain_timeout_s = 120.0
    config.tuning.rebalancing = what.rules
    return config


class _LiveReplay:
    """Args:
    seed: Of the trace and of who is taken away; None: nobody.
    """

    def __init__(self, what: Slice, seed: int | None):
        self.moves = 0
        self._what = what
        self._trace = [] if seed is None else draw_trace(what.market, seed)
        self._chance = np.random.default_rng(seed)
        self._starting: set[asyncio.Task] = set()
        config = _config(what)
        self._swarm = SimulatedSwarm(
            config,
            data=ModelledTokens(config),
            make_compute=self._make_compute,
            peers_per_stage=best_allocation(
                what.market.peers, (1.0,) * what.num_stages
            ),
            network=LocalNetwork(
                heartbeat_s=config.tuning.heartbeat_s,
                latency_s=lambda sender, receiver: LATENCY_S,
            ),
            prepare_s=what.prepare_s,
        )
        self._swarm.network.wires.listeners.append(self._hear)

    async def run(self, lasts_s: float) -> float:
        """Microbatches trained over those of the best allocation."""
        running = asyncio.ensure_future(self._swarm.run())
        while self._trained() < self._what.microbatches:
            await asyncio.sleep(1.0)
        before, possible = self._trained(), 0.0
        began_s = now_s = asyncio.get_running_loop().time()
        for at_s, comes in self._changes(lasts_s):
            await asyncio.sleep(max(0.0, began_s + at_s - now_s))
            then_s, now_s = now_s, asyncio.get_running_loop().time()
            possible += (now_s - then_s) * self._best()
            if comes is not None:
                self._start_later() if comes else self._take_away()
        trained = self._trained() - before
        for task in (running, *self._starting):
            task.cancel()
        await asyncio.wait({running, *self._starting})
        return float(trained / possible)

    def _hear(self, event: Event) -> None:
        if (event.kind, event.op) == ("answered", MoveTo.op):
            self.moves += 1

    def _changes(self, lasts_s: float) -> Iterator[tuple[float, bool | None]]:
        """Times, and whether a peer comes or goes then; the end is neither.

        Between two changes nobody's start may be over: the best allocation would be
        another one. So there is a time for that, too.
        """
        times = [(change.at_s, change.comes) for change in self._trace]
        starts = [at_s + self._what.start_s for at_s, comes in times if comes]
        times += [(at_s, None) for at_s in (*starts, lasts_s)]
        for at_s, comes in sorted(times, key=lambda change: change[0]):
            if at_s <= lasts_s:
                yield at_s, comes

    def _trained(self) -> int:
        if not self._swarm.seconds:
            return 0
        last = self._swarm.seconds[-1]
        return last["step"] * self._what.microbatches + last["answered"]

    def _best(self) -> float:
        """Microbatches per second of the best allocation of who has started."""
        stages = best_allocation(len(self._swarm.alive), (1.0,) * self._what.num_stages)
        return min(stages) / sum(MICROBATCH_S.values())

    def _take_away(self) -> None:
        peers = list(self._swarm.alive)
        if peers:
            self._swarm.kill_now(peers[self._chance.integers(len(peers))])

    def _start_later(self) -> None:
        async def start() -> None:
            await asyncio.sleep(self._what.start_s)
            self._swarm.start_peer(int(self._chance.integers(self._what.num_stages)))

        self._starting.add(asyncio.ensure_future(start()))

    def _make_compute(self, stage: int) -> ModelledCompute:
        is_last = stage == self._what.num_stages - 1
        both_s = sum(MICROBATCH_S.values())

        def duration_s(name: str) -> float:
            if is_last and name == "backward":
                return both_s
            return MICROBATCH_S.get(name, 0.01)

        return ModelledCompute(self._swarm.config, stage, duration_s)
