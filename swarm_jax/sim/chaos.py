"""Faults as data: random schedules on virtual time, and one oracle for all of them.

A schedule is a list of faults, each at a request ("when the n-th ``op`` reaches
``peer``") or at a time. The oracle is always the same: the run ends, its ledgers are
exact, and every peer that is at the last step has bit for bit the state of a run
without faults (``sim.modelled`` computes exactly).
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.ledger import Audit
from swarm_jax.core.reports import ONLINE
from swarm_jax.errors import PeerLost
from swarm_jax.net.protocols import Message
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.modelled import ModelledCompute, ModelledTokens, modelled_config
from swarm_jax.sim.swarm import SimulatedSwarm

STEPS = 4
DEADLINE_S = 2000.0
OPS = ("relay", "collect", "prepare", "commit", "drop", "resync", "manifest", "chunk")
CLOSE_OPS = ("collect", "prepare", "commit")
KINDS = (
    *("kill", "freeze", "drain", "join", "kill_trainer"),
    *("refuse", "lose_answer", "duplicate", "delay"),
)


class Broken(Exception):
    """The oracle says no."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Attributes:
    kind: One of ``KINDS``.
    stage, replica: The peer it strikes; ``replica`` counts those ever started.
    op, nth: Strikes when the n-th request of this kind reaches that peer.
    at_s: Or at this time, if ``op`` is empty.
    for_s: How long a freeze or a delay lasts.
    """

    kind: str
    stage: int
    replica: int
    op: str
    nth: int
    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run: its shape and its faults."""

    peers_per_stage: tuple[int, ...]
    trainers: int
    faults: tuple[Fault, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Schedule":
        faults = tuple(Fault(**fault) for fault in values["faults"])
        peers = tuple(values["peers_per_stage"])
        return cls(peers, values["trainers"], faults)


def random_schedule(seed: int) -> Schedule:
    """A schedule that is a function of its seed; every third strikes only closes."""
    rng = random.Random(seed)
    peers = tuple(rng.randint(1, 3) for _ in range(rng.randint(1, 4)))
    ops = CLOSE_OPS if rng.random() < 0.34 else OPS
    faults = tuple(_random_fault(rng, peers, ops) for _ in range(rng.randint(1, 8)))
    return Schedule(peers, rng.randint(1, 2), faults)


def _random_fault(
    rng: random.Random, peers: Sequence[int], ops: Sequence[str]
) -> Fault:
    stage = rng.randrange(len(peers))
    return Fault(
        kind=rng.choice(KINDS),
        stage=stage,
        replica=rng.randint(0, peers[stage]),
        op=rng.choice(ops) if rng.random() < 0.8 else "",
        nth=rng.randint(1, 12),
        at_s=round(rng.uniform(0.0, 3.0), 2),
        for_s=round(rng.choice([0.05, 0.5, 4.0, 15.0]), 2),
    )


def run_schedule(schedule: Schedule) -> None:
    """Runs a schedule to its end.

    Raises:
        Broken: With what is wrong.
    """
    config = modelled_config(num_stages=len(schedule.peers_per_stage), steps=STEPS)
    expected = _reference(config)
    try:
        audit, states = run_virtual(_ChaosRun(config, schedule).run())
    except TimeoutError as error:
        raise Broken(f"not finished after {DEADLINE_S:g} s") from error
    # The record of one step may have died with each trainer, between commit and note.
    dead_trainers = sum(fault.kind == "kill_trainer" for fault in schedule.faults)
    enough = max(0, STEPS - dead_trainers) * config.microbatches_per_step
    if not audit.exact or audit.expected < enough:
        raise Broken(f"ledgers: {audit}")
    for peer, state in states.items():
        stage = int(peer.removeprefix("stage").split("-")[0])
        if state != expected[stage]:
            raise Broken(f"{peer} has other parameters than a run without faults")


_references: dict[str, list[bytes]] = {}


def _reference(config: ExperimentConfig) -> list[bytes]:
    """Final state of each stage in a run without faults, one peer per stage."""
    key = config.swarm_fingerprint()
    if key not in _references:
        one_each = Schedule((1,) * config.swarm.num_stages, 1, ())
        _, states = run_virtual(_ChaosRun(config, one_each).run())
        _references[key] = [states[f"stage{s}-0"] for s in range(len(states))]
    return _references[key]


class _ChaosRun:
    def __init__(self, config: ExperimentConfig, schedule: Schedule):
        self._schedule = schedule
        self._swarm = SimulatedSwarm(
            config,
            data=ModelledTokens(config),
            make_compute=lambda stage: ModelledCompute(config, stage),
            peers_per_stage=schedule.peers_per_stage,
        )
        self._config = config
        self._seen: Counter[tuple[str, str]] = Counter()
        self._trainers: dict[str, tuple[Any, asyncio.Task]] = {}
        self._leaving: set[str] = set()
        self._acting: set[asyncio.Task] = set()
        self._failed: list[BaseException] = []
        self._names = itertools.count()

    async def run(self) -> tuple[Audit, dict[str, bytes]]:
        for stage, count in enumerate(self._schedule.peers_per_stage):
            for _ in range(count):
                self._start_peer(stage)
        for _ in range(self._schedule.trainers):
            self._start_trainer()
        for fault in self._schedule.faults:
            if not fault.op:
                self._act(self._strike_at(fault))
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not any(t.done() for _, t in self._trainers.values()):
                    await asyncio.wait(
                        [task for _, task in self._trainers.values()],
                        timeout=1.0,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
            for task in self._acting:
                task.cancel()
            for failed in self._failed:
                raise failed
            return await self._result()
        finally:
            await self._stop()

    async def _result(self) -> tuple[Audit, dict[str, bytes]]:
        for _, task in self._trainers.values():
            if task.done():
                task.result()
        last = self._config.steps
        states = {}
        for peer, server in list(self._swarm.servers.items()):
            state = server.state
            if state.step == last and state.state == ONLINE and not state.changing:
                arrays = await self._swarm.computes[peer].state()
                states[peer] = b"".join(array.tobytes() for array in arrays)
        stages = {peer.split("-")[0] for peer in states}
        if len(stages) < self._config.swarm.num_stages:
            raise Broken(f"only {sorted(states)} are at the last step")
        return _closed(self._swarm.steps), states

    async def _stop(self) -> None:
        for peer in list(self._swarm._tasks):
            await self._swarm.kill(peer)
        for name, (_, task) in self._trainers.items():
            task.cancel()
            self._swarm.network.kill(name)
        await asyncio.wait([task for _, task in self._trainers.values()])

    def _start_peer(self, stage: int) -> None:
        peer = self._swarm.start_peer(stage)
        server = self._swarm.servers[peer]
        handle = server.handle

        async def watched(sender: str, message: Message) -> Message:
            op = message.header["op"]
            self._seen[peer, op] += 1
            faults = [f for f in self._schedule.faults if self._strikes(f, peer, op)]
            for fault in faults:
                if fault.kind == "refuse":
                    raise ConnectionError("refused by the schedule")
                if fault.kind == "delay":
                    await asyncio.sleep(fault.for_s)
                elif fault.kind == "duplicate":
                    self._act(_ignoring_errors(handle(sender, message)))
                elif fault.kind != "lose_answer":
                    self._act(self._strike(fault, peer))
                    await asyncio.sleep(0)
            reply = await handle(sender, message)
            if any(fault.kind == "lose_answer" for fault in faults):
                raise ConnectionError("answer lost by the schedule")
            return reply

        server.handle = watched

    def _strikes(self, fault: Fault, peer: str, op: str) -> bool:
        return (
            f"stage{fault.stage}-{fault.replica}" == peer
            and fault.op == op
            and self._seen[peer, op] == fault.nth
        )

    async def _strike_at(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        await self._strike(fault, f"stage{fault.stage}-{fault.replica}")

    async def _strike(self, fault: Fault, peer: str) -> None:
        match fault.kind:
            case "join":
                self._start_peer(fault.stage)
            case "kill_trainer":
                await self._kill_trainer()
            case "kill" if self._is_spare(peer):
                await self._swarm.kill(peer)
            case "freeze" if peer in self._swarm._tasks:
                self._swarm.network.freeze(peer)
                await asyncio.sleep(fault.for_s)
                self._swarm.network.thaw(peer)
            case "drain" if self._is_spare(peer):
                await self._drain(peer)

    async def _drain(self, peer: str) -> None:
        server = self._swarm.servers[peer]
        self._leaving.add(peer)
        left = await server.drain(10.0)
        await server.leave()
        if left and peer in self._swarm._tasks:
            await self._swarm.kill(peer)
        elif not left:
            server.state.state = ONLINE  # nobody could take over: it stays
            self._leaving.discard(peer)

    async def _kill_trainer(self) -> None:
        name = min(
            (n for n, (_, t) in self._trainers.items() if not t.done()), default=""
        )
        if name:
            _, task = self._trainers.pop(name)
            self._start_trainer()
            self._swarm.network.kill(name)
            task.cancel()
            await asyncio.wait([task])

    def _start_trainer(self) -> None:
        name = f"trainer{next(self._names)}"
        trainer = self._swarm.make_trainer(name)
        self._trainers[name] = trainer, asyncio.ensure_future(trainer.run())

    def _is_spare(self, peer: str) -> bool:
        """Whether its stage keeps another peer of the newest step without it.

        That peer must also have what this one has prepared: a stage that lost all
        that, and cannot get the step again, is lost for good.
        """
        if peer not in self._swarm._tasks or peer in self._leaving:
            return False
        mine = self._swarm.servers[peer].state
        newest = max(server.state.step for server in self._alive(mine.stage).values())
        return any(
            other != peer
            and server.state.state == ONLINE
            and server.state.step == newest
            and not server.state.changing
            for other, server in self._alive(mine.stage).items()
        )

    def _alive(self, stage: int) -> dict[str, Any]:
        return {
            peer: self._swarm.servers[peer]
            for peer in self._swarm._tasks
            if self._swarm.servers[peer].state.stage == stage
            and peer not in self._leaving
        }

    def _act(self, action: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(action)
        self._acting.add(task)
        task.add_done_callback(self._acted)

    def _acted(self, task: asyncio.Task) -> None:
        self._acting.discard(task)
        if not task.cancelled() and task.exception():
            self._failed.append(task.exception())


async def _ignoring_errors(call: Awaitable[object]) -> None:
    try:
        await call
    except (PeerLost, ConnectionError):
        return


def _closed(records: Sequence[dict[str, Any]]) -> Audit:
    """Over all steps that any trainer closed."""
    names = ("expected", "counted_once", "lost", "counted_twice")
    return Audit(
        *(sum(record[f"microbatches_{n}"] for record in records) for n in names)
    )


def shrink(schedule: Schedule) -> Schedule:
    """The schedule without the faults that it fails without, too."""
    index = 0
    while index < len(schedule.faults):
        faults = schedule.faults[:index] + schedule.faults[index + 1 :]
        shorter = Schedule(schedule.peers_per_stage, schedule.trainers, faults)
        if failure(shorter):
            schedule = shorter
        else:
            index += 1
    return schedule


def failure(schedule: Schedule) -> str | None:
    """What is wrong with a run of the schedule; None if it is right."""
    try:
        run_schedule(schedule)
    except Exception as error:  # whatever it is, this schedule shows it
        return f"{type(error).__name__}: {error}"
    return None
