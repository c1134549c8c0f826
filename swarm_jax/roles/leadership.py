"""One trainer's term: its rounds, and questions to peers within a round."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.ids import Round
from swarm_jax.errors import PeerError
from swarm_jax.net.protocols import Message, PeerCalls
from swarm_jax.roles.messages import (
    Collect,
    MalformedHeader,
    Request,
    Status,
    read,
    to_header,
)
from swarm_jax.roles.watches import Watches

logger = logging.getLogger(__name__)

VOID = {"status": Status.VOID}
"""What is known of a peer that was not waited for."""


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
        silent: Peers that did not answer in this round, or were lost since.
        busy: Peers that are still at a change they were asked for. They are asked for
            nothing else: one with a stuck device would hold up every round.
    """

    def __init__(
        self, config: ExperimentConfig, calls: PeerCalls, trainer: str, number: int
    ):
        self._calls = calls
        self._swarm = config.swarm_fingerprint()
        self._control_timeout_s = config.tuning.control_timeout_s
        self._change_timeout_s = config.tuning.relay_timeout_s
        self._watches = Watches(calls, self._swarm, self._lost)
        self._collecting: dict[str, asyncio.Task] = {}
        self._changing: dict[str, asyncio.Task] = {}
        self.silent: frozenset[str] = frozenset()
        self.round = Round(number, trainer, 0)

    @property
    def busy(self) -> frozenset[str]:
        return frozenset(self._changing)

    def next_round(self) -> None:
        self.round = self.round._replace(pass_=self.round.pass_ + 1)

    async def finish(self) -> None:
        """Waits until nobody is busy."""
        if self._changing:
            await asyncio.wait(self._changing.values())

    def close(self) -> None:
        self._watches.close()
        for task in (*self._collecting.values(), *self._changing.values()):
            task.cancel()

    async def collect(self, peers: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """Begins a round: asks all peers where they are; returns who answered what.

        A peer that was silent is asked again, but nobody waits for it before it has
        answered: a frozen one would hold up every round as long as the first.

        Raises:
            Deposed: One of them follows a newer leader.
        """
        self.next_round()
        peers = sorted(peers)
        under_way = self._collecting.keys() | self._changing.keys()
        request = Collect(round=self.round)
        timeout_s = self._control_timeout_s
        asked = {
            peer: self._begin(peer, request, timeout_s, self._collecting)
            for peer in peers
            if peer not in under_way
        }
        awaited = [task for peer, task in asked.items() if peer not in self.silent]
        if asked:
            await asyncio.wait(awaited or asked.values())
        replies = self._replies(asked)
        self.silent = frozenset(peers) - replies.keys()
        for peer in replies:
            self._watches.begin(peer)
        return replies

    def _lost(self, peer: str) -> None:
        self.silent |= {peer}

    async def insist(self, peers: Iterable[str], request: Request) -> set[str]:
        """Asks for a change of parameters or sums; returns who has made it.

        A slow peer (the first update compiles) has ``relay_timeout_s`` for it, but is
        not waited for so long: see ``busy``.

        Raises:
            Deposed: One of them follows a newer leader.
        """
        timeout_s = self._change_timeout_s
        asked = {
            peer: self._begin(peer, request, timeout_s, self._changing)
            for peer in peers
            if peer not in self._changing
        }
        if asked:
            await asyncio.wait(asked.values(), timeout=self._control_timeout_s)
        return accepted(self._replies(asked))

    def _begin(
        self,
        peer: str,
        request: Request,
        timeout_s: float,
        under_way: dict[str, asyncio.Task],
    ) -> asyncio.Task:
        task = under_way[peer] = asyncio.ensure_future(
            self._ask(peer, request, timeout_s)
        )
        task.add_done_callback(lambda _: under_way.pop(peer))
        task.add_done_callback(lambda _: self._heard(peer, task))
        return task

    def _heard(self, peer: str, task: asyncio.Task) -> None:
        if not task.cancelled() and not task.exception() and task.result() is not None:
            self.silent -= {peer}

    def _replies(
        self, asked: Mapping[str, asyncio.Task]
    ) -> dict[str, Mapping[str, Any]]:
        return self._checked({p: t.result() for p, t in asked.items() if t.done()})

    async def ask_together(
        self, requests: Mapping[str, Request], *, timeout_s: float
    ) -> dict[str, Mapping[str, Any]]:
        """Asks for what all do together or none; returns the replies.

        When one has failed, the others cannot succeed: they get ``control_timeout_s``
        to say whom they lacked, and count as void if they do not.

        Raises:
            Deposed: One of them follows a newer leader.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        tasks = {
            peer: asyncio.ensure_future(self._ask(peer, request, timeout_s))
            for peer, request in requests.items()
        }
        waiting = set(tasks.values())
        try:
            while waiting and (left_s := end_s - loop.time()) > 0:
                done, waiting = await asyncio.wait(
                    waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
                replies = (task.result() or {} for task in done)
                if any(reply.get("status") != Status.OK for reply in replies):
                    end_s = min(end_s, loop.time() + self._control_timeout_s)
            given_up = {peer: VOID for peer, task in tasks.items() if task in waiting}
            return self._replies(tasks) | given_up
        finally:
            for task in waiting:
                task.cancel()

    def _checked(
        self, headers: Mapping[str, Mapping[str, Any] | None]
    ) -> dict[str, Mapping[str, Any]]:
        """The answers, without those that are none."""
        replies = {p: header for p, header in headers.items() if header is not None}
        for peer, header in list(replies.items()):
            try:
                if header.get("status") == Status.OLD_ROUND:
                    self.check_promise(read(header, "promise", "Round"))
            except MalformedHeader as error:
                logger.warning("answer of %s: %s", peer, error)
                del replies[peer]
        return replies

    async def _ask(
        self, peer: str, request: Request, timeout_s: float
    ) -> Mapping[str, Any] | None:
        message = Message(to_header(request, self._swarm))
        call = self._calls.call(peer, message, timeout_s=timeout_s)
        try:
            return (await self._watches.answer(peer, call)).header
        except PeerError as error:
            level = logging.DEBUG if peer in self.silent else logging.INFO
            logger.log(level, "%s: no answer: %s", request.op, error)
            return None

    def check_promise(self, promise: Round) -> None:
        """Raises ``Deposed`` when a promise is newer than all that we have asked.

        It may even be our own, from before a restart with the same identity.
        """
        if promise > self.round:
            raise Deposed(promise)


def accepted(replies: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {p for p, header in replies.items() if header.get("status") == Status.OK}
