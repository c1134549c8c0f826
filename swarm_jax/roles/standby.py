"""What a trainer that stands by knows of the one that leads, before its lease ends."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence, Set
from typing import Any, NamedTuple

from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import BadMessage, PeerError, PeerLost, PeerStalled, PeerTimeout
from swarm_jax.net.protocols import ArraySpec, Message, PeerCalls
from swarm_jax.roles.messages import (
    WATCH_S,
    MalformedHeader,
    Status,
    Watch,
    from_header,
    refusal,
    to_header,
)
from swarm_jax.roles.watches import answer_watch

logger = logging.getLogger(__name__)

UNREACHABLE = PeerLost, PeerStalled, PeerTimeout


class Term(NamedTuple):
    """A trainer that leads, and the number of its lease."""

    trainer: str
    number: int


class Standby:
    """Watches those that lead, as a leader watches its peers.

    To take over too early is safe (peers follow the newer term) but costs time. So a
    trainer is gone only if it was there for ``lease_s``, then stopped answering, and
    does not answer when asked once more. Two trainers that lose each other, and nothing
    else, change places once: whom the new leader has cut off from itself cannot watch
    it, and waits for its lease.
    """

    def __init__(self, config: ExperimentConfig, calls: PeerCalls):
        self._calls = calls
        self._swarm = config.swarm_fingerprint()
        self._lease_s = config.tuning.lease_s
        self._heartbeat_s = config.tuning.heartbeat_s
        self._vigils: dict[Term, asyncio.Task[Term]] = {}
        self._gone: set[Term] = set()

    def are_gone(self, terms: Set[Term]) -> bool:
        """Whether nobody of those that lead is still there."""
        return all(term in self._gone for term in terms)

    async def watch(
        self, terms: Set[Term], news: Coroutine[Any, Any, Set[Term]]
    ) -> Set[Term]:
        """Returns who leads, as soon as there are news or one of them is gone.

        News come from the directory, where a frozen peer holds up who asks.

        Args:
            terms: Of those that lead; not all of them are gone as far as is known.
            news: Gives the same, later.
        """
        for term in self._vigils.keys() - terms:
            self._vigils.pop(term).cancel()
        for term in terms - self._vigils.keys():
            self._vigils[term] = asyncio.ensure_future(self._until_gone(term))
        reading = asyncio.ensure_future(news)
        vigils = {self._vigils[term] for term in terms - self._gone}
        try:
            first = asyncio.FIRST_COMPLETED
            done, _ = await asyncio.wait({reading, *vigils}, return_when=first)
            self._gone |= {vigil.result() for vigil in done & vigils}
            return reading.result() if reading.done() else terms
        finally:
            reading.cancel()

    def end(self) -> None:
        """Forgets what it knows: the next time that it stands by is another matter."""
        for vigil in self._vigils.values():
            vigil.cancel()
        self._vigils.clear()
        self._gone.clear()

    async def _until_gone(self, term: Term) -> Term:
        while True:
            await self._until_there(term.trainer)
            while await self._is_there(term.trainer, WATCH_S):
                pass
            if not await self._is_there(term.trainer, 0.0):
                logger.warning("trainer %s, which leads, is gone", term.trainer[-6:])
                return term

    async def _until_there(self, trainer: str) -> None:
        while not await self._is_there(trainer, self._lease_s):
            await asyncio.sleep(self._lease_s)

    async def _is_there(self, trainer: str, for_s: float) -> bool:
        """Whether it is for so long. Who refuses to say so is there, too."""
        message = Message(to_header(Watch(for_s=for_s), self._swarm))
        timeout_s = 2 * for_s + self._heartbeat_s
        try:
            await self._calls.call(trainer, message, timeout_s=timeout_s)
        except UNREACHABLE:
            return False
        except PeerError:
            await asyncio.sleep(for_s)
        return True


class Watched:
    """``Service`` of a trainer: it can be watched, and that is all.

    Args:
        swarm: The swarm's fingerprint.
    """

    def __init__(self, swarm: str):
        self._swarm = swarm

    def admit(
        self, sender: str, header: Mapping[str, Any], specs: Sequence[ArraySpec]
    ) -> Message | None:
        if header.get("swarm") != self._swarm:
            return refusal(Status.WRONG_SWARM)
        try:
            request = from_header(header)
        except MalformedHeader as error:
            raise BadMessage(sender, str(error)) from error
        if specs or not isinstance(request, Watch):
            raise BadMessage(sender, f"asks a trainer to {request.op}")
        return None

    async def handle(self, sender: str, message: Message) -> Message:
        return await answer_watch(from_header(message.header))
