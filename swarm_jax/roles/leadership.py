"""One trainer's term: its rounds, and questions to peers within a round."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.ids import Round
from swarm_jax.errors import PeerError
from swarm_jax.net.protocols import Message, PeerCalls
from swarm_jax.roles.messages import MalformedHeader, Request, Status, read, to_header

logger = logging.getLogger(__name__)


class Deposed(Exception):
    """A peer follows a newer leader; this one's term is over."""

    def __init__(self, promise: Round):
        super().__init__(f"a newer leader is at {promise}")
        self.promise = promise


class Leadership:
    """Rounds of one term.

    Args:
        number: The term's number in the lease.

    Attributes:
        busy: Peers that are still at a change they were asked for. They get no other
            request: one with a stuck device would hold up everybody, again and again.
    """

    def __init__(
        self, config: ExperimentConfig, calls: PeerCalls, trainer: str, number: int
    ):
        self._calls = calls
        self._swarm = config.swarm_fingerprint()
        self._control_timeout_s = config.tuning.control_timeout_s
        self._change_timeout_s = config.tuning.relay_timeout_s
        self._changing: dict[str, asyncio.Task] = {}
        self.round = Round(number, trainer, 0)

    def next_round(self) -> None:
        self.round = self.round._replace(pass_=self.round.pass_ + 1)

    @property
    def busy(self) -> frozenset[str]:
        return frozenset(self._changing)

    async def ask(
        self, peers: Iterable[str], request: Request
    ) -> dict[str, Mapping[str, Any]]:
        """Asks all peers the same; see ``ask_each``."""
        return await self.ask_each({peer: request for peer in peers})

    async def insist(self, peers: Iterable[str], request: Request) -> set[str]:
        """Asks for a change of parameters or sums; returns who has made it.

        A slow peer (the first update compiles) has ``relay_timeout_s`` for it, but is
        not waited for so long: see ``busy``.

        Raises:
            Deposed: One of them follows a newer leader.
        """
        requests = {peer: request for peer in peers if peer not in self._changing}
        tasks = {peer: self._begin(peer, request) for peer in requests}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=self._control_timeout_s)
        headers = {peer: task.result() for peer, task in tasks.items() if task.done()}
        return accepted(self._checked(requests, headers))

    def _begin(self, peer: str, request: Request) -> asyncio.Task:
        asking = self._ask(peer, request, self._change_timeout_s)
        task = self._changing[peer] = asyncio.ensure_future(asking)
        task.add_done_callback(lambda _: self._changing.pop(peer))
        return task

    async def finish(self) -> None:
        """Waits until nobody is busy."""
        while self._changing:
            await asyncio.wait(self._changing.values())

    def close(self) -> None:
        for task in self._changing.values():
            task.cancel()

    async def ask_each(
        self, requests: Mapping[str, Request], *, more_time_s: float = 0.0
    ) -> dict[str, Mapping[str, Any]]:
        """Asks all peers at once; returns the reply headers of those that answered.

        Args:
            more_time_s: How much longer than a small control call this may take.

        Raises:
            Deposed: One of them follows a newer leader.
        """
        timeout_s = self._control_timeout_s + more_time_s
        headers = await asyncio.gather(
            *(self._ask(peer, r, timeout_s) for peer, r in requests.items())
        )
        return self._checked(requests, dict(zip(requests, headers, strict=True)))

    def _checked(
        self,
        requests: Mapping[str, Request],
        headers: Mapping[str, Mapping[str, Any] | None],
    ) -> dict[str, Mapping[str, Any]]:
        """The replies that came and are well formed."""
        replies = {peer: header for peer, header in headers.items() if header}
        for peer, header in list(replies.items()):
            try:
                if header.get("status") == Status.OLD_ROUND:
                    self.check_promise(read(header, "promise", "Round"))
            except MalformedHeader as error:
                logger.warning("%s: answer of %s: %s", requests[peer].op, peer, error)
                del replies[peer]
        return replies

    async def _ask(
        self, peer: str, request: Request, timeout_s: float
    ) -> Mapping[str, Any] | None:
        message = Message(to_header(request, self._swarm))
        try:
            return (await self._calls.call(peer, message, timeout_s=timeout_s)).header
        except PeerError as error:
            logger.info("%s: no answer: %s", request.op, error)
            return None

    def check_promise(self, promise: Round) -> None:
        """Raises ``Deposed`` when a promise is newer than all that we have asked.

        It may even be our own, from before a restart with the same identity.
        """
        if promise > self.round:
            raise Deposed(promise)


def accepted(replies: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {p for p, header in replies.items() if header.get("status") == Status.OK}
