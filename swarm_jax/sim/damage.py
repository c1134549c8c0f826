"""What faults do to links and to single messages."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from swarm_jax.errors import BadMessage
from swarm_jax.net.local import DIRECTORY, EVERYBODY, Event, LocalNetwork, OneMessage
from swarm_jax.net.protocols import Message, spec_of
from swarm_jax.sim.faults import Fault
from swarm_jax.sim.swarm import SimulatedSwarm

SLOW_S = 0.3
LAG_S = 2.0


def make_condition(
    network: LocalNetwork, fault: Fault, victim: str, everybody: Collection[str]
) -> Callable[[], Any]:
    """Begins one of the ``LASTING`` faults; returns what ends it.

    Who is cut off is so from the directory and from those that start later, too.
    """
    wires = network.wires
    others = [fault.other] if fault.other else [*sorted(everybody), EVERYBODY]
    match fault.kind:
        case "refuse":
            wires.refusing.add(victim)
            return lambda: wires.refusing.discard(victim)
        case "hang":
            network.freeze(victim)
            return lambda: network.thaw(victim)
        case "slow":
            _slow_down(network, victim, fault.other or EVERYBODY, SLOW_S)
            return lambda: _slow_down(network, victim, fault.other or EVERYBODY, 0.0)
        case "partition" | "silence":
            network.partition([victim], others, silent=fault.kind == "silence")
            return lambda: network.reunite([victim], others)
        case "no_directory":
            wires.cut(victim, DIRECTORY, silent=True)
            return lambda: wires.heal(victim, DIRECTORY)
        case "lag":
            network.records.lag_s = LAG_S
            return lambda: setattr(network.records, "lag_s", 0.0)
    raise AssertionError(fault.kind)


def _slow_down(network: LocalNetwork, one: str, other: str, delay_s: float) -> None:
    network.wires.delay(one, other, delay_s)
    network.wires.delay(other, one, delay_s)


class Damage:
    """Faults that wait for the next message that fits.

    Args:
        on_struck: Called with the fault's place in its schedule.
        do: Runs a coroutine beside the swarm.
    """

    def __init__(
        self,
        swarm: SimulatedSwarm,
        on_struck: Callable[[int], None],
        do: Callable[[Coroutine[Any, Any, None]], None],
    ):
        self._swarm = swarm
        self._on_struck = on_struck
        self._do = do
        self._sent: dict[int, tuple[Fault, str]] = {}
        self._handled: dict[int, tuple[Fault, str]] = {}
        self._newest: dict[str, tuple[str, Message]] = {}

    def disarm(self) -> None:
        self._sent.clear()
        self._handled.clear()

    def wait_for_message(self, index: int, fault: Fault, victim: str) -> None:
        """Strikes the next message that ``victim`` sends.

        A request is repeated, or done but answered with an error, where it is handled;
        what came last may be repeated at once.
        """
        is_server = victim in self._swarm.servers
        if fault.kind == "lose_answer" or (fault.kind == "duplicate" and is_server):
            self._handled[index] = fault, victim
            arriving = fault.when.startswith(("request_arrived", "approaching"))
            if fault.kind == "duplicate" and not arriving and victim in self._newest:
                self._repeat(victim)
        else:
            self._sent[index] = fault, victim

    def hear(self, event: Event) -> None:
        """Called just before a message leaves its sender."""
        if event.kind not in ("request_sent", "answered"):
            return
        for index, (fault, victim) in list(self._sent.items()):
            fits = victim == event.peer and fault.other in ("", event.other)
            if fits and (fault.kind != "duplicate" or event.kind == "request_sent"):
                del self._sent[index]
                what = OneMessage(
                    corrupt=fault.kind == "corrupt",
                    duplicate=fault.kind == "duplicate",
                    delay_s=0.0 if fault.kind == "corrupt" else fault.for_s,
                )
                self._swarm.network.wires.harm_next(event.peer, event.other, what)
                self._on_struck(index)

    def handles(self, peer: str, sender: str, message: Message) -> bool:
        """Notes a request that ``peer`` handles; whether its answer is to be lost."""
        self._newest[peer] = sender, message
        self._repeat(peer)
        lost = [
            index
            for index, (fault, victim) in self._handled.items()
            if victim == peer and fault.kind == "lose_answer"
        ]
        for index in lost:
            del self._handled[index]
            self._on_struck(index)
        return bool(lost)

    def _repeat(self, peer: str) -> None:
        for index, (fault, victim) in list(self._handled.items()):
            if victim == peer and fault.kind == "duplicate":
                del self._handled[index]
                self._on_struck(index)
                self._do(self._arrive_again(peer, *self._newest[peer], fault.for_s))

    async def _arrive_again(
        self, peer: str, sender: str, message: Message, delay_s: float
    ) -> None:
        await asyncio.sleep(delay_s)
        if peer not in self._swarm.alive:
            return
        server = self._swarm.servers[peer]
        specs = [spec_of(array) for array in message.arrays]
        try:
            if server.admit(sender, message.header, specs) is None:
                await server.handle(sender, message)
        except (BadMessage, ConnectionError):
            return  # as its sender would hear
