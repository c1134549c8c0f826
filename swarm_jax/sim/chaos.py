"""Runs a schedule of faults to its end, and lets the oracle look.

The oracle (``sim.oracle``) asks the same of every run: it ends in bounded time with all
live peers at the last step and ONLINE, bit for bit as plain training; every update was
made with exact ledgers; nothing is left over and nothing has crashed.
"""

import asyncio
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.reports import ONLINE
from swarm_jax.errors import BadMessage
from swarm_jax.net.local import Event, LocalNetwork
from swarm_jax.net.protocols import Message
from swarm_jax.roles.messages import WATCH_S
from swarm_jax.sim.checkpoints import MemoryFolder
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.faults import TRAINER, Schedule
from swarm_jax.sim.modelled import ModelledCompute, ModelledTokens, modelled_config
from swarm_jax.sim.oracle import (
    Broken,
    Closes,
    check_checkpoints,
    check_records,
    train_sequentially,
)
from swarm_jax.sim.sabotage import Saboteur
from swarm_jax.sim.swarm import SimulatedSwarm

STEPS = 4
SAVE_EVERY_STEPS = 2
LATENCY_S = 0.005
POLL_S = 0.25
PATIENCE_S = 15.0
"""For a run and for each of its faults, beside how long the fault lasts."""
CLEAN_S = WATCH_S + 5.0
"""A run that is over has nothing in progress after this: a watch is the longest."""


def run_schedule(schedule: Schedule) -> frozenset[int]:
    """Runs a schedule to its end; returns the places of the faults that really struck.

    Raises:
        Broken: With what is wrong.
    """
    return run_virtual(_ChaosRun(schedule).run())


def failure(schedule: Schedule) -> str | None:
    """What is wrong with a run of the schedule; None if it is right."""
    try:
        run_schedule(schedule)
    except Exception as error:  # whatever it is, this schedule shows it
        return f"{type(error).__name__}: {error}"
    return None


def shrink(schedule: Schedule) -> Schedule:
    """The schedule without the faults that it fails without, too."""
    index = 0
    while index < len(schedule.faults):
        faults = schedule.faults[:index] + schedule.faults[index + 1 :]
        shorter = replace(schedule, faults=faults)
        if failure(shorter):
            schedule = shorter
        else:
            index += 1
    return schedule


def _make_config(schedule: Schedule) -> ExperimentConfig:
    config = modelled_config(
        num_stages=len(schedule.peers_per_stage),
        steps=STEPS,
        tied_head=schedule.tied_head,
        delayed_updates=schedule.delayed_updates,
    )
    config.checkpoint.every_steps = SAVE_EVERY_STEPS
    return config


class _ChaosRun:
    """The world that a saboteur strikes."""

    def __init__(self, schedule: Schedule):
        self._schedule = schedule
        self._config = config = _make_config(schedule)
        self._patience_s = PATIENCE_S + sum(
            PATIENCE_S + fault.at_s + fault.for_s for fault in schedule.faults
        )
        if schedule.may_restart:
            self._patience_s += config.tuning.lost_stage_s
        self._names = itertools.count()
        self._trainers: dict[str, asyncio.Task] = {}
        self._crashes: list[str] = []
        self._folder = MemoryFolder()
        self.swarm = SimulatedSwarm(
            config,
            data=ModelledTokens(config),
            make_compute=lambda stage: ModelledCompute(config, stage),
            peers_per_stage=schedule.peers_per_stage,
            network=LocalNetwork(
                heartbeat_s=config.tuning.heartbeat_s,
                latency_s=lambda sender, receiver: LATENCY_S,
            ),
            make_checkpoints=self._folder.of_stage,
        )
        self.swarm.on_server = self._watch
        self._closes = Closes(self.swarm.servers)
        self._saboteur = Saboteur(self, schedule.faults)
        self.swarm.network.wires.listeners += [self._closes.hear, self._saboteur.hear]

    @property
    def trainers(self) -> Sequence[str]:
        return [name for name, task in self._trainers.items() if not task.done()]

    async def run(self) -> frozenset[int]:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, context: self._crashes.append(str(context))
        )
        for stage, count in enumerate(self._schedule.peers_per_stage):
            for _ in range(count):
                self.start_peer(stage)
        for _ in range(self._schedule.trainers):
            self.start_trainer()
        self._saboteur.start()
        try:
            await self._until(self._unfinished, self._patience_s)
            terms = len(self._closes.terms)
            self._saboteur.disarm()
            await self._until(self._unsettled, self._patience_s)
            await self._until(self._leftovers, CLEAN_S)
            await self._check(terms)
        finally:
            await self._stop()
        await self._until(self._remains, CLEAN_S)
        return frozenset(self._saboteur.struck)

    async def _until(
        self, wrong: Callable[[], Collection[Any]], patience_s: float
    ) -> None:
        """Waits until nothing is wrong."""
        deadline_s = asyncio.get_running_loop().time() + patience_s
        while wrong():
            self._check_for_crashes()
            if asyncio.get_running_loop().time() > deadline_s:
                raise Broken(f"after {patience_s:g} s: {wrong()}")
            await asyncio.sleep(POLL_S)
        self._check_for_crashes()

    def _check_for_crashes(self) -> None:
        crashes = [*self._crashes, *map(repr, self._saboteur.failed)]
        crashes += [f"{peer} ended: {e!r}" for peer, e in self.swarm.crashed.items()]
        if crashes:
            raise Broken("; ".join(crashes))
        for task in self._trainers.values():
            if task.done():
                task.result()

    def _unfinished(self) -> list[str]:
        """Trainers, as long as none of them has finished."""
        some = len(self.trainers) < len(self._trainers)
        return [] if some else ["no trainer has finished", *self._positions()]

    def _unsettled(self) -> list[str]:
        """Whom a fault has left behind, when all faults are over.

        A peer that wakes after the end of the run needs a trainer that tells it where
        the swarm is.
        """
        behind = self._positions()
        if behind and not self.trainers:
            self.start_trainer()
        quiet = [] if self._saboteur.quiet else ["a fault goes on"]
        return [*quiet, *behind, *self.trainers]

    def _positions(self) -> list[str]:
        """Peers that are not ONLINE at the last step, and where they are."""
        last = self._config.steps
        return [
            f"{peer} is {server.state.state} at step {server.state.step}"
            for peer, server in self.swarm.alive.items()
            if (server.state.state, server.state.step) != (ONLINE, last)
        ]

    def _leftovers(self) -> list[str]:
        """What is still in progress when all is done; snapshots may be kept a while."""
        found = []
        for peer, server in self.swarm.alive.items():
            holds = server.holds | {
                "snapshots": 0,
                "calls": self.swarm.network.find(peer).handling,
                "operations": self.swarm.computes[peer].queued,
            }
            found += [f"{peer}: {count} {w}" for w, count in holds.items() if count]
        return found

    def _remains(self) -> list[str]:
        """What is there when everybody has been killed."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        kept = [
            f"{peer}: {server.holds}"
            for peer, server in self.swarm.servers.items()
            if server.holds["snapshots"] or server.holds["microbatches"]
        ]
        return [*map(repr, tasks), *kept]

    async def _check(self, terms: int) -> None:
        """Raises ``Broken`` unless states, ledgers and records are right."""
        config = self._config
        kind = {
            "tied_head": self._schedule.tied_head,
            "delayed_updates": self._schedule.delayed_updates,
        }
        reference = train_sequentially(config.swarm.num_stages, config.steps, **kind)
        for peer, server in self.swarm.alive.items():
            compute = self.swarm.computes[peer]
            state = b"".join(array.tobytes() for array in await compute.state())
            if state != reference.states[server.state.stage]:
                raise Broken(f"{peer} has other parameters than plain training gives")
            if np.any(await compute.gradient_sum(1.0)):
                raise Broken(f"{peer} has something in its gradient sum at the end")
        check_checkpoints(self._folder, config.swarm.num_stages, **kind)
        self._closes.check(
            config.swarm.num_stages, config.steps, config.microbatches_per_step
        )
        check_records(
            self.swarm.steps, reference, terms, may_repeat=self._schedule.may_restart
        )

    async def _stop(self) -> None:
        for peer in self.swarm.alive:
            await self.swarm.kill(peer)
        for name in list(self._trainers):
            self.kill_trainer(name)
        self.swarm.network.wires.listeners.clear()

    def start_peer(self, stage: int) -> None:
        self.swarm.start_peer(stage)

    def _watch(self, peer: str) -> None:
        """Tells the saboteur of what happens, and notes handlers that crash."""
        wires = self.swarm.network.wires
        self.swarm.computes[peer].on_operation = lambda kind, name: wires.report(
            Event(kind, name, peer)
        )
        server = self.swarm.servers[peer]
        handle = server.handle

        async def watched(sender: str, message: Message) -> Message:
            loses_answer = self._saboteur.damage.handles(peer, sender, message)
            try:
                reply = await handle(sender, message)
            except BadMessage:
                raise
            except Exception as error:
                self._crashes.append(f"{message.header['op']} on {peer}: {error!r}")
                raise
            if loses_answer:
                raise ConnectionError("the schedule says that this answer is lost")
            return reply

        server.handle = watched

    def start_trainer(self) -> None:
        name = f"{TRAINER}{next(self._names)}"
        may_restart = self._schedule.may_restart
        trainer = self.swarm.make_trainer(name, restart_if_lost=lambda: may_restart)
        self._trainers[name] = asyncio.ensure_future(trainer.run())

    def kill_trainer(self, name: str) -> None:
        self.swarm.network.kill(name)
        self._trainers.pop(name).cancel()
