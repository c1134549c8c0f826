"""Who of the peers is still there, known without asking."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from swarm_jax.net.protocols import Message, PeerCalls
from swarm_jax.roles.messages import WATCH_S, Status, Watch, to_header


class Watches:
    """A call to each peer that is long in being answered, and fails when the peer does.

    So a peer that freezes is known after three heartbeats, whatever it is doing then,
    instead of three heartbeats after the next question to it.

    Args:
        swarm: The swarm's fingerprint.
        on_lost: Called with a peer that is gone or frozen.
    """

    def __init__(self, calls: PeerCalls, swarm: str, on_lost: Callable[[str], None]):
        self._calls = calls
        self._message = Message(to_header(Watch(for_s=WATCH_S), swarm))
        self._on_lost = on_lost
        self._watches: dict[str, asyncio.Task] = {}

    def begin(self, peer: str) -> None:
        """Does nothing if it is watched already. To be called in every round."""
        if peer not in self._watches:
            call = self._calls.call(peer, self._message, timeout_s=2 * WATCH_S)
            watch = self._watches[peer] = asyncio.ensure_future(call)
            watch.add_done_callback(lambda done: self._ended(peer, done))

    def close(self) -> None:
        for watch in self._watches.values():
            watch.cancel()

    async def answer(self, peer: str, call: Coroutine[Any, Any, Message]) -> Message:
        """What a call to a peer gives, or raises why that peer was lost meanwhile."""
        answering = asyncio.ensure_future(call)
        watch = self._watches.get(peer, answering)
        try:
            await asyncio.wait({answering, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                watch.result()
            return await answering
        finally:
            answering.cancel()

    def _ended(self, peer: str, watch: asyncio.Task) -> None:
        del self._watches[peer]
        if not watch.cancelled() and watch.exception():
            self._on_lost(peer)


async def answer_watch(request: Watch) -> Message:
    await asyncio.sleep(min(request.for_s, WATCH_S))
    return Message({"status": Status.OK})
