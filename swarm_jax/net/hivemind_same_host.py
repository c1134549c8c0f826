"""How peers on one host find a way past their daemons (``same_host``).

The secrets of a stream travel over a short libp2p stream, which is authenticated on
both sides: it is kept open until the other one is, and its end is theirs.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from swarm_jax.errors import PeerLost, PeerStalled
from swarm_jax.net.hivemind_node import HivemindNode
from swarm_jax.net.same_host import (
    HANDSHAKE_S,
    IS_AVAILABLE,
    SECRET_BYTES,
    Entrance,
    Introduction,
    Streams,
    Take,
    connect,
    introduce,
    name_of,
)

logger = logging.getLogger(__name__)


class SameHost:
    """Streams to and from peers on this host.

    Args:
        node: The started node.
        protocol: Of the calls that the streams carry.
        is_used: Without it there are none, in either direction.
        silence_s: A peer here that does not introduce itself for so long has stalled.
        max_introductions: Of one peer at once; more are refused.
        is_welcome: Whether a peer may have a stream.
        take: Gets the streams that peers open, each with its peer.
    """

    def __init__(
        self,
        node: HivemindNode,
        protocol: str,
        *,
        is_used: bool,
        silence_s: float,
        max_introductions: int,
        is_welcome: Callable[[str], bool],
        take: Take,
    ):
        self._node = node
        self._calls_protocol = protocol
        self._protocol = f"{protocol}/same_host"
        self._is_used = is_used and IS_AVAILABLE
        self._silence_s = silence_s
        self._max_introductions = max_introductions
        self._is_welcome = is_welcome
        self._entrance = Entrance(name_of(node.peer_id, protocol), take)
        self._serves = False
        self._introducing: Counter[str] = Counter()

    async def serve(self) -> None:
        """Makes this peer reachable; where that fails, others use its daemon."""
        if not self._is_used:
            return
        try:
            await self._entrance.open()
        except OSError as error:
            logger.warning("No direct streams from peers of this host: %s", error)
            return
        await self._node.p2p.add_binary_stream_handler(self._protocol, self._introduce)
        self._serves = True

    async def open_stream(self, peer: str) -> Streams | None:
        """A stream to a peer on this host; None for others.

        Raises:
            PeerStalled: It is here, and does not answer.
        """
        if not self._is_used:
            return None
        streams = await connect(name_of(peer, self._calls_protocol))
        if streams is None:
            return None
        _, writer = streams
        is_peer = False
        try:
            is_peer = await self._is_peer(peer, streams)
        finally:
            if not is_peer:
                writer.transport.abort()
        return streams if is_peer else None

    async def close(self) -> None:
        self._entrance.close()
        if self._serves:
            self._serves = False
            await self._node.p2p.remove_binary_stream_handler(self._protocol)

    async def _is_peer(self, peer: str, streams: Streams) -> bool:
        writer = None
        try:
            async with asyncio.timeout(self._silence_s):
                reader, writer = await self._node.open_stream(
                    peer, self._protocol, timeout_s=HANDSHAKE_S
                )
                secrets = await reader.readexactly(2 * SECRET_BYTES)
            return await introduce(streams, Introduction.from_bytes(secrets))
        except TimeoutError as error:
            reason = f"on this host, but silent for {self._silence_s:g} s"
            raise PeerStalled(peer, reason) from error
        except (PeerLost, OSError, EOFError):
            return False
        finally:
            if writer is not None:
                writer.transport.abort()

    async def _introduce(
        self,
        info: StreamInfo,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        peer = info.peer_id.to_base58()
        self._introducing[peer] += 1
        try:
            allowed = self._introducing[peer] <= self._max_introductions
            if allowed and self._is_welcome(peer):
                with self._entrance.expecting(peer) as introduction:
                    writer.write(introduction.to_bytes())
                    async with asyncio.timeout(HANDSHAKE_S):
                        await reader.read(1)
        except (OSError, TimeoutError) as error:
            logger.debug("Introduction of peer %s: %s", peer, error)
        finally:
            self._introducing[peer] -= 1
            self._introducing += Counter()  # without those that are 0
            writer.transport.abort()
