"""Does what a schedule says, exactly when it says so.

A ``Saboteur`` hears every event of the network and of the devices just before it
happens, and strikes then and there: between two statements of the victim, so to speak.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol

from swarm_jax.core.reports import ONLINE
from swarm_jax.net.local import Event
from swarm_jax.sim.damage import Damage, make_condition
from swarm_jax.sim.faults import LASTING, MESSAGES, TRAINER, Fault
from swarm_jax.sim.swarm import SimulatedSwarm

DRAIN_S = 10.0


class World(Protocol):
    """The swarm that is struck, with its trainers."""

    swarm: SimulatedSwarm

    @property
    def trainers(self) -> Sequence[str]:
        """Those that have been neither killed nor finished."""
        ...

    def start_peer(self, stage: int) -> None: ...

    def start_trainer(self) -> None: ...

    def kill_trainer(self, name: str) -> None: ...


class Saboteur:
    """Strikes a world with faults.

    Attributes:
        struck: Which of the faults, by their place, have really struck.
        failed: What went wrong in things that it does beside the swarm.
    """

    def __init__(self, world: World, faults: Sequence[Fault]):
        self._world = world
        self._swarm = world.swarm
        self._faults = faults
        self._armed = dict(enumerate(faults))
        self._begun: set[int] = set()
        self._heard: Counter[int] = Counter()
        self._leader = ""
        self._leaving: set[str] = set()
        self._acting: set[asyncio.Future] = set()
        self._quiet_at_s = 0.0
        self.struck: set[int] = set()
        self.failed: list[BaseException] = []
        self.damage = Damage(world.swarm, self._struck_message, self._do)

    def start(self) -> None:
        for index, fault in enumerate(self._faults):
            if not fault.when:
                self._strike_later(index, fault.peer, fault.at_s)

    def disarm(self) -> None:
        """From now on nothing new strikes; what lasts goes on to its end."""
        self._armed.clear()
        self.damage.disarm()

    @property
    def quiet(self) -> bool:
        """Whether the last effect of the last fault is over."""
        now_s = asyncio.get_running_loop().time()
        return now_s >= self._quiet_at_s and not self._acting

    def hear(self, event: Event) -> None:
        if (event.kind, event.op) == ("request_sent", "collect"):
            self._leader = event.peer
        self._happened(event.peer, f"{event.kind} {event.op}")
        if event.kind == "request_sent":
            self._happened(event.other, f"approaching {event.op}")
        self.damage.hear(event)

    def _happened(self, place: str, what: str) -> None:
        for index, fault in list(self._armed.items()):
            if place != fault.place and not (
                fault.place == TRAINER and place in self._world.trainers
            ):
                continue
            if what == fault.after:
                self._begun.add(index)
            elif what == fault.when and (not fault.after or index in self._begun):
                self._heard[index] += 1
                if self._heard[index] == fault.nth:
                    victim = place if fault.place == fault.peer else fault.peer
                    self._strike_later(index, victim, fault.at_s)

    def _strike_later(self, index: int, victim: str, delay_s: float) -> None:
        if delay_s:
            loop = asyncio.get_running_loop()
            loop.call_later(delay_s, self._strike, index, victim)
        else:
            self._strike(index, victim)

    def _strike(self, index: int, victim: str) -> None:
        fault = self._armed.pop(index, None)
        victim = self._name(victim)
        is_there = victim in self._world.trainers or victim in self._swarm.alive
        if fault is None or not (is_there or fault.kind == "join"):
            return
        fault = replace(fault, other=self._name(fault.other))
        if fault.kind in MESSAGES:
            self.damage.wait_for_message(index, fault, victim)
            return
        if fault.kind in LASTING:
            others = {*self._swarm.alive, *self._world.trainers} - {victim}
            end = make_condition(self._swarm.network, fault, victim, others)
            self._later(fault.for_s, end)
        elif not self._act(fault, victim):
            return
        self.struck.add(index)

    def _name(self, peer: str) -> str:
        """Of the trainer the one that leads now."""
        if peer != TRAINER:
            return peer
        leads = self._leader in self._world.trainers
        return self._leader if leads else min(self._world.trainers, default="")

    def _act(self, fault: Fault, victim: str) -> bool:
        """Something that happens once; False if the protocol does not promise it."""
        match fault.kind:
            case "join":
                self._world.start_peer(fault.stage)
            case "crash" | "crash_alone" if victim in self._world.trainers:
                self._world.kill_trainer(victim)
                self._later(fault.for_s, self._world.start_trainer)
            case "crash" if self._has_mate(victim):
                self._swarm.kill_now(victim)
            case "crash_alone":
                self._swarm.kill_now(victim)
                self._later(fault.for_s, lambda: self._world.start_peer(fault.stage))
            case "drain" if victim not in self._leaving and self._has_mate(victim):
                self._do(self._drain(victim))
            case "move" if victim not in self._leaving and self._has_mate(victim):
                server = self._swarm.servers[victim]
                num_stages = self._swarm.config.swarm.num_stages
                server.move((server.state.stage + 1) % num_stages)
            case _:
                return False
        return True

    async def _drain(self, peer: str) -> None:
        server = self._swarm.servers[peer]
        self._leaving.add(peer)
        left = await server.drain(DRAIN_S)
        await server.leave()
        if left and peer in self._swarm.alive:
            await self._swarm.kill(peer)
        elif not left:
            server.state.state = ONLINE  # nobody could take over: it stays
            self._leaving.discard(peer)

    def _has_mate(self, peer: str) -> bool:
        """Whether its stage keeps another peer of the newest step without it."""
        if peer not in self._swarm.alive:
            return False
        stage = self._swarm.servers[peer].state.stage
        peers = {
            name: server.state
            for name, server in self._swarm.alive.items()
            if server.state.stage == stage
        }
        newest = max(state.step for state in peers.values())
        return any(
            state.state == ONLINE and state.step == newest
            for name, state in peers.items()
            if name != peer and name not in self._leaving
        )

    def _struck_message(self, index: int) -> None:
        """It is over when the message that is held back has come, too."""
        self.struck.add(index)
        self._later(self._faults[index].for_s, lambda: None)

    def _later(self, delay_s: float, action: Callable[[], Any]) -> None:
        loop = asyncio.get_running_loop()
        self._quiet_at_s = max(self._quiet_at_s, loop.time() + delay_s)
        loop.call_later(delay_s, action) if delay_s else action()

    def _do(self, action: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(action)
        self._acting.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task) -> None:
        self._acting.discard(task)
        if not task.cancelled() and task.exception():
            self.failed.append(task.exception())
