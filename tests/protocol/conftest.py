"""Directed schedules: one fault at one message, with a rule switched on or off.

Real roles on virtual time, devices whose arithmetic is exact. A run is right when it
ends, each microbatch was counted once, and every peer at the last step has bit for bit
the state of plain training.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from swarm_jax.core.reports import ONLINE
from swarm_jax.errors import SwarmError
from swarm_jax.net.local import Event, LocalNetwork
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.modelled import (
    DURATIONS_S,
    ModelledCompute,
    ModelledTokens,
    modelled_config,
)
from swarm_jax.sim.oracle import train_sequentially
from swarm_jax.sim.swarm import SimulatedSwarm

RIGHT = "right"
NOT_FINISHED = "not finished"
TRAINER = "trainer-a"
LATENCY_S = 0.001
"""Without it a swarm that goes round in circles does so in no time at all."""


class Rule:
    """A rule that the test runs with, and then without."""

    def __init__(self, is_on: bool, monkeypatch: pytest.MonkeyPatch):
        self.is_on = is_on
        self._monkeypatch = monkeypatch

    def off(self, owner: Any, name: str, replacement: Any) -> None:
        """Puts ``replacement`` in the place of what implements the rule."""
        if not self.is_on:
            self._monkeypatch.setattr(owner, name, replacement)

    def gives(self, on: Any, *, off: Any) -> Any:
        """What the test must see."""
        return on if self.is_on else off


@pytest.fixture(params=["on", "off"], ids="rule_{}".format)
def rule(request, monkeypatch) -> Rule:
    return Rule(request.param == "on", monkeypatch)


@dataclass(slots=True)
class _Hook:
    kind: str
    op: str
    peer: str
    nth: int
    header: dict[str, Any]
    do: Callable[[], object]

    def fits(self, event: Event) -> bool:
        header = {name: event.header.get(name) for name in self.header}
        place = event.kind, event.op, event.peer
        return place == (self.kind, self.op, self.peer) and header == self.header


class Run:
    """A swarm, and what a schedule does to it.

    Args:
        skipped: The step that must be skipped, if one must.
        folder: Where all peers save; None for nowhere.
        make_checkpoints: Gives the place where a new peer of a stage saves instead.
        save_every: Steps between two checkpoints.
        durations_s: Of the device's operations, where they are not the usual ones.

    Attributes:
        counts: How often each (kind, op, peer) happened.
        leaders: Trainers that asked peers where they are, as they took turns.
        slow_s: Seconds of a peer's next operation of a name, once.
    """

    def __init__(
        self,
        peers,
        *,
        steps=3,
        on_nonfinite="stop",
        skipped=None,
        folder=None,
        make_checkpoints=None,
        save_every=0,
        tied_head=False,
        delayed_updates=False,
        durations_s=None,
        **tuning,
    ):
        self.config = config = modelled_config(
            num_stages=len(peers),
            steps=steps,
            tied_head=tied_head,
            delayed_updates=delayed_updates,
        )
        self._durations_s = DURATIONS_S | (durations_s or {})
        self.skipped = skipped
        config.swarm.on_nonfinite = on_nonfinite
        config.checkpoint.every_steps = save_every
        for name, value in tuning.items():
            setattr(config.tuning, name, value)
        self.network = LocalNetwork(
            heartbeat_s=config.tuning.heartbeat_s,
            latency_s=lambda sender, receiver: LATENCY_S,
        )
        self.swarm = SimulatedSwarm(
            config,
            data=ModelledTokens(config),
            make_compute=self._make_compute,
            peers_per_stage=peers,
            network=self.network,
            make_checkpoints=make_checkpoints
            or (folder.of_stage if folder else lambda stage: None),
        )
        self.wires = self.network.wires
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.leaders: list[str] = []
        self.slow_s: dict[tuple[str, str], float] = {}
        self.crashes: list[BaseException] = []
        self.trainers: dict[str, asyncio.Task] = {}
        self._hooks: list[_Hook] = []
        self._acting: set[asyncio.Task] = set()
        self.wires.listeners.append(self._happened)

    def at(self, kind, op, peer, do, *, nth: int = 1, **header) -> None:
        """Calls ``do`` just before something happens for the n-th time from now.

        Args:
            do: A function; if it gives a coroutine, that runs beside the swarm.
            header: What the request's header must say.
        """
        self._hooks.append(_Hook(kind, op, peer, nth, header, do))

    async def happens(self, kind, op, peer, *, nth: int = 1, **header) -> None:
        happened = asyncio.get_running_loop().create_future()
        self.at(kind, op, peer, lambda: happened.set_result(None), nth=nth, **header)
        await happened

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.001)

    def state(self, peer: str):
        return self.swarm.servers[peer].state

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def cut(self, one: str, other: str, *, silent: bool = True) -> None:
        self.network.partition([one], [other], silent=silent)

    def heal(self, one: str, other: str) -> None:
        self.network.reunite([one], [other])

    def refuse(self, peer: str) -> None:
        self.wires.refusing.add(peer)

    def start_trainer(self, name: str) -> None:
        trainer = self.swarm.make_trainer(name)
        self.trainers[name] = asyncio.ensure_future(trainer.run())

    def kill_trainer(self, name: str = TRAINER) -> None:
        self.network.kill(name)
        self.trainers.pop(name).cancel()

    def kill(self, peer: str) -> None:
        """At once, unlike the swarm's own, which a hook could not await."""
        self.network.kill(peer)
        self.swarm._tasks[peer].cancel()

    def act(self, coroutine: Coroutine) -> None:
        task = asyncio.ensure_future(coroutine)
        self._acting.add(task)
        task.add_done_callback(self._acted)

    async def main(self, schedule, trainers: int, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self._crashed(context))
        for stage, count in enumerate(self.swarm._peers_per_stage):
            for _ in range(count):
                self.swarm.start_peer(stage)
        if schedule is not None:
            self.act(schedule(self))
        for name in (TRAINER, "trainer-b")[:trainers]:
            self.start_trainer(name)
        try:
            async with asyncio.timeout(deadline_s):
                while not any(task.done() for task in self.trainers.values()):
                    await asyncio.sleep(0.1)
            for task in self.trainers.values():
                if task.done():
                    task.result()
        finally:
            self.ended_s = self.now_s()
            await self._stop()

    async def states(self) -> dict[str, bytes]:
        """Of every peer at the last step."""
        last = self.config.steps
        return {
            peer: b"".join(a.tobytes() for a in await self.swarm.computes[peer].state())
            for peer, server in self.swarm.servers.items()
            if server.state.step == last and server.state.state == ONLINE
        }

    async def _stop(self) -> None:
        for task in self._acting:
            task.cancel()
        for peer in list(self.swarm._tasks):
            await self.swarm.kill(peer)
        for name in list(self.trainers):
            task = self.trainers[name]
            self.kill_trainer(name)
            await asyncio.wait([task])

    def _make_compute(self, stage: int) -> ModelledCompute:
        number = sum(s.state.stage == stage for s in self.swarm.servers.values())
        peer = f"stage{stage}-{number}"

        def duration_s(name: str) -> float:
            self.counts["device_started", name, peer] += 1
            usual_s = self._durations_s.get(name, 0.002)
            return self.slow_s.pop((peer, name), usual_s)

        return ModelledCompute(self.config, stage, duration_s)

    def _happened(self, event: Event) -> None:
        self.counts[event.kind, event.op, event.peer] += 1
        if (event.kind, event.op) == ("request_sent", "collect"):
            if event.peer not in self.leaders[-1:]:
                self.leaders.append(event.peer)
        for hook in [hook for hook in self._hooks if hook.fits(event)]:
            hook.nth -= 1
            if hook.nth == 0:
                self._hooks.remove(hook)
                if asyncio.iscoroutine(acting := hook.do()):
                    self.act(acting)

    def _acted(self, task: asyncio.Task) -> None:
        self._acting.discard(task)
        if not task.cancelled() and task.exception():
            self.crashes.append(task.exception())

    def _crashed(self, context: dict[str, Any]) -> None:
        self.crashes.append(context.get("exception") or RuntimeError(str(context)))


@dataclass
class Outcome:
    """Attributes:
    verdict: RIGHT, NOT_FINISHED, or what is wrong.
    """

    run: Run
    verdict: str
    states: dict[str, bytes] = field(default_factory=dict)

    @property
    def ended_s(self) -> float:
        return self.run.ended_s

    def count(self, kind: str, op: str, peer: str = "") -> int:
        """How often it happened; at any peer, if none is named."""
        return sum(
            n
            for (k, o, p), n in self.run.counts.items()
            if (k, o) == (kind, op) and peer in ("", p)
        )

    def counted_by(self, peer: str) -> int:
        records = self.run.swarm.peer_steps[peer]
        return sum(record["microbatches_counted"] for record in records)


@pytest.fixture
def play():
    """``play(peers, schedule)`` runs a swarm to its end, or to a deadline."""

    def play(peers, schedule=None, *, trainers=1, deadline_s=60.0, **options):
        async def main() -> Outcome:
            run = Run(peers, **options)
            try:
                await run.main(schedule, trainers, deadline_s)
            except TimeoutError:
                return Outcome(run, NOT_FINISHED)
            except SwarmError as error:
                return Outcome(run, type(error).__name__)
            return Outcome(run, RIGHT, await run.states())

        outcome = run_virtual(main())
        if outcome.verdict == RIGHT:
            outcome.verdict = _verdict(outcome.run, outcome.states)
        return outcome

    return play


def _verdict(run: Run, states: dict[str, bytes]) -> str:
    for crash in run.crashes:
        return f"crashed: {crash!r}"
    num_stages = run.config.swarm.num_stages
    tied_head = run.config.model.tied_head
    delayed_updates = run.config.swarm.delayed_updates
    reference = train_sequentially(
        num_stages, run.config.steps, run.skipped, tied_head, delayed_updates
    )
    expected = reference.states
    for record in run.swarm.steps:
        if not record.get("skipped") and (
            record["microbatches_counted_once"] != run.config.microbatches_per_step
        ):
            return "inexact ledgers"
    stages = {peer: run.swarm.servers[peer].state.stage for peer in states}
    if set(stages.values()) != set(range(len(expected))):
        return "a stage is not at the last step"
    if any(states[peer] != expected[stage] for peer, stage in stages.items()):
        return "wrong parameters"
    return RIGHT
