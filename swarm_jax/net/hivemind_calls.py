"""``PeerCalls`` over long-lived libp2p streams.

A few streams per pair of peers and direction of calling are opened on first use, kept,
and opened again after a loss. Two are enough to fill a link, and let a small call pass
a large one that waits for its flow-control window.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable

from hivemind.p2p import P2PDaemonError
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from swarm_jax.errors import PeerLost, PeerTimeout
from swarm_jax.net.hivemind_node import HivemindNode
from swarm_jax.net.protocols import Message, Service
from swarm_jax.net.wire import Callee, Caller

WIRE_VERSION = 1
CLOSE_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


class HivemindCalls:
    """Calls of one peer, in both directions.

    Args:
        node: The started node; it is not closed with this object.
        protocol: Who may meet: contains the swarm's fingerprint, so that peers of
            another experiment find no handler.
        heartbeat_s: Period of heartbeats that this peer's calls ask for.
        max_message_bytes: Larger messages are refused.
        streams_per_peer: Streams to each peer that is called.
        dial_timeout_s: Bound on opening one.
        authorised: Whether a peer may call; asked when it opens a stream.
    """

    def __init__(
        self,
        node: HivemindNode,
        protocol: str,
        *,
        heartbeat_s: float,
        max_message_bytes: int,
        streams_per_peer: int = 2,
        dial_timeout_s: float = 5.0,
        authorised: Callable[[str], bool] = lambda peer: True,
    ):
        self.peer_id = node.peer_id
        self._node = node
        self._protocol = f"/swarm_jax/{WIRE_VERSION}/{protocol}"
        self._heartbeat_s = heartbeat_s
        self._max_message_bytes = max_message_bytes
        self._dial_timeout_s = dial_timeout_s
        self._authorised = authorised
        self._turns = itertools.cycle(range(streams_per_peer))
        self._dials: dict[tuple[str, int], asyncio.Task[Caller]] = {}
        self._callees: dict[str, set[Callee]] = {}
        self._service: Service | None = None
        self._closed = False

    async def serve(self, service: Service) -> None:
        assert self._service is None, "serve() is called once"
        self._service = service
        await self._node.p2p.add_binary_stream_handler(self._protocol, self._accept)

    async def call(self, peer: str, message: Message, *, timeout_s: float) -> Message:
        """As ``PeerCalls.call``; also ``ValueError`` for what cannot be sent."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        caller = await self._stream_to(peer, timeout_s)
        return await caller.call(message, timeout_s=deadline_s - loop.time())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._service is not None:
            self._service = None
            # Without a daemon there is nothing to tell it.
            with contextlib.suppress(OSError, EOFError, P2PDaemonError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._node.p2p.remove_binary_stream_handler(self._protocol)
        callees = [callee for some in self._callees.values() for callee in some]
        tasks = {task for callee in callees for task in callee.tasks}
        for callee in callees:
            callee.abort()
        for dial in list(self._dials.values()):
            if not dial.cancel() and not dial.cancelled() and not dial.exception():
                dial.result().abort()
        # Aborted transports close, and cancel their tasks, one turn of the loop later.
        await asyncio.sleep(0)
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)

    async def _stream_to(self, peer: str, timeout_s: float) -> Caller:
        """An open stream; calls that come while it is dialled share the dial."""
        if self._closed:
            raise PeerLost(peer, "this peer is closed")
        key = (peer, next(self._turns))
        dial = self._dials.get(key)
        if dial is None:
            dial = self._dials[key] = asyncio.ensure_future(self._dial(key))
            dial.add_done_callback(lambda done: self._dialled(key, done))
        # A caller that gives up must not end the dial of the others.
        await asyncio.wait({dial}, timeout=timeout_s)
        if not dial.done():
            raise PeerTimeout(peer, f"no connection in {timeout_s:g} s")
        if dial.cancelled():
            raise PeerLost(peer, "this peer is closed")
        return dial.result()

    async def _dial(self, key: tuple[str, int]) -> Caller:
        reader, writer = await self._node.open_stream(
            key[0], self._protocol, timeout_s=self._dial_timeout_s
        )
        caller = Caller(
            key[0],
            heartbeat_s=self._heartbeat_s,
            max_message_bytes=self._max_message_bytes,
            on_lost=lambda: self._dials.pop(key, None),
        )
        await caller.attach(reader, writer)
        return caller

    def _dialled(self, key: tuple[str, int], dial: "asyncio.Task[Caller]") -> None:
        if dial.cancelled() or dial.exception():
            self._dials.pop(key, None)

    async def _accept(
        self,
        info: StreamInfo,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        peer = info.peer_id.to_base58()
        if self._service is None or not self._authorised(peer):
            logger.warning("Refused a stream of peer %s", peer)
            writer.transport.abort()
            return
        callees = self._callees.setdefault(peer, set())
        callee = Callee(
            peer,
            self._service,
            max_message_bytes=self._max_message_bytes,
            on_bad=lambda: self._drop(peer),
            on_lost=lambda: self._forget(callee),
        )
        callees.add(callee)
        await callee.attach(reader, writer)

    def _drop(self, peer: str) -> None:
        for callee in self._callees.get(peer, ()):
            callee.abort()

    def _forget(self, callee: Callee) -> None:
        callees = self._callees.get(callee.peer, set())
        callees.discard(callee)
        if not callees:
            self._callees.pop(callee.peer, None)
