"""``PeerCalls`` over long-lived streams: libp2p's, or those of one host.

A few streams per pair of peers and direction of calling are opened on first use, kept,
and opened again after a loss. Two are enough to fill a link, and let a small call pass
a large one that waits for its flow-control window.

A peer that sends something malformed, or stalls (``wire``), is banned: all its streams
end, and new ones are refused until the ban is over, without a look at what they carry.
Bans are the node's, so that they hold for all protocols of this process. Our own calls
to a banned peer go on: what it answers is for its callers to judge, and the router has
bans of its own.

Streams: ``max_streams_per_peer`` of one peer, more are refused. ``max_streams`` of all;
one more ends the stream that has been idle for longest, whose peer opens it again when
it has something to say. It is refused when none is idle.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable

from hivemind.p2p import P2PDaemonError
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from swarm_jax.errors import PeerLost, PeerStalled, PeerTimeout
from swarm_jax.net.budget import Budget
from swarm_jax.net.callee import Callee
from swarm_jax.net.caller import Caller
from swarm_jax.net.hivemind_node import HivemindNode
from swarm_jax.net.hivemind_same_host import SameHost
from swarm_jax.net.progress import STALL_S
from swarm_jax.net.protocols import Message, Service
from swarm_jax.net.wire import SILENT_HEARTBEATS

WIRE_VERSION = 1
CLOSE_TIMEOUT_S = 5.0
NOT_ALLOWED = "it is not on the allow-list"

logger = logging.getLogger(__name__)


class HivemindCalls:
    """Calls of one peer, in both directions.

    Args:
        node: The started node; it is not closed with this object.
        protocol: Who may meet: contains the swarm's fingerprint, so that peers of
            another experiment find no handler.
        heartbeat_s: Period of heartbeats that this peer's calls ask for.
        max_message_bytes: Larger messages are refused.
        budget_bytes: Of all messages that are being received, handled or answered;
            default: twice ``max_message_bytes``, at least 256 MiB.
        busy: What a call is answered that finds no room in the budget.
        stall_s: A peer that owes something and moves less than 16 KiB in this time is
            banned.
        streams_per_peer: Streams to each peer that is called.
        dial_timeout_s: Bound on opening one.
        max_streams_per_peer: Streams from each peer.
        max_streams: Streams from all peers.
        authorised: Whether a peer may call; asked when it opens a stream.
        same_host: Whether peers of this user on this host are met directly.
    """

    def __init__(
        self,
        node: HivemindNode,
        protocol: str,
        *,
        heartbeat_s: float,
        max_message_bytes: int,
        budget_bytes: int | None = None,
        busy: Message | None = None,
        stall_s: float = STALL_S,
        streams_per_peer: int = 2,
        max_streams_per_peer: int = 8,
        max_streams: int = 384,
        dial_timeout_s: float = 5.0,
        authorised: Callable[[str], bool] = lambda peer: True,
        same_host: bool = True,
    ):
        self.peer_id = node.peer_id
        self._node = node
        self._protocol = f"/swarm_jax/{WIRE_VERSION}/{protocol}"
        self._heartbeat_s = heartbeat_s
        self._max_message_bytes = max_message_bytes
        self._budget = (
            Budget.for_messages(max_message_bytes)
            if budget_bytes is None
            else Budget(budget_bytes)
        )
        self._busy = busy
        self._stall_s = stall_s
        self._max_streams_per_peer = max_streams_per_peer
        self._max_streams = max_streams
        self._dial_timeout_s = dial_timeout_s
        self._authorised = authorised
        self._turns = itertools.cycle(range(streams_per_peer))
        self._dials: dict[tuple[str, int], asyncio.Task[Caller]] = {}
        self._callees: dict[str, set[Callee]] = {}
        self._here: set[str] = set()
        self._service: Service | None = None
        self._closed = False
        self._same_host = SameHost(
            node,
            self._protocol,
            is_used=same_host,
            silence_s=SILENT_HEARTBEATS * heartbeat_s,
            max_introductions=max_streams_per_peer,
            is_welcome=lambda peer: not self._objection(peer),
            take=self._take,
        )
        node.when_banned.append(self._drop)

    async def serve(self, service: Service) -> None:
        assert self._service is None, "serve() is called once"
        self._service = service
        await self._same_host.serve()
        await self._node.p2p.add_binary_stream_handler(self._protocol, self._accept)

    async def call(self, peer: str, message: Message, *, timeout_s: float) -> Message:
        """As ``PeerCalls.call``; also ``ValueError`` for what cannot be sent."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        try:
            caller = await self._stream_to(peer, timeout_s)
            return await caller.call(message, timeout_s=deadline_s - loop.time())
        except PeerStalled:
            self._node.doubt(peer)
            raise

    def is_same_host(self, peer: str) -> bool:
        return peer in self._here

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._node.when_banned.remove(self._drop)
        if self._service is not None:
            self._service = None
            # Without a daemon there is nothing to tell it.
            with contextlib.suppress(OSError, EOFError, P2PDaemonError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._same_host.close()
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
        peer, _ = key
        streams = await self._same_host.open_stream(peer)
        if streams is not None:
            self._here.add(peer)
        else:
            self._here.discard(peer)
            streams = await self._node.open_stream(
                peer, self._protocol, timeout_s=self._dial_timeout_s
            )
        caller = Caller(
            peer,
            heartbeat_s=self._heartbeat_s,
            max_message_bytes=self._max_message_bytes,
            budget=self._budget,
            on_lost=lambda: self._dials.pop(key, None),
        )
        await caller.attach(*streams)
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
        await self._take(info.peer_id.to_base58(), reader, writer)

    async def _take(
        self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if reason := self._refusal(peer):
            # Not louder: a stream costs its peer nothing, a log line us something.
            level = logging.WARNING if reason == NOT_ALLOWED else logging.DEBUG
            logger.log(level, "Refused a stream of peer %s: %s", peer, reason)
            writer.transport.abort()
            return
        callees = self._callees.setdefault(peer, set())
        callee = Callee(
            peer,
            self._service,
            max_message_bytes=self._max_message_bytes,
            budget=self._budget,
            busy=self._busy,
            stall_s=self._stall_s,
            on_bad=lambda: self._node.ban(peer),
            on_lost=lambda: self._forget(callee),
        )
        callees.add(callee)
        await callee.attach(reader, writer)

    def _objection(self, peer: str) -> str:
        """Why nothing of a peer is taken; empty for one that is welcome."""
        if self._service is None:
            return "this peer is closed"
        if not self._authorised(peer):
            return NOT_ALLOWED
        if self._node.banned_for_s(peer):
            return "it is banned"
        return ""

    def _refusal(self, peer: str) -> str:
        """Why a new stream of a peer is not taken; empty when it is."""
        if reason := self._objection(peer):
            return reason
        if len(self._callees.get(peer, ())) >= self._max_streams_per_peer:
            return f"it has {self._max_streams_per_peer} already"
        callees = [callee for some in self._callees.values() for callee in some]
        if len(callees) < self._max_streams:
            return ""
        idle = [callee for callee in callees if callee.is_idle]
        if not idle:
            return f"there are {self._max_streams} already"
        longest = min(idle, key=lambda callee: callee.heard_s)
        self._forget(longest)
        longest.abort()
        return ""

    def _drop(self, peer: str) -> None:
        for callee in list(self._callees.get(peer, ())):
            callee.abort()

    def _forget(self, callee: Callee) -> None:
        callees = self._callees.get(callee.peer, set())
        callees.discard(callee)
        if not callees:
            self._callees.pop(callee.peer, None)
