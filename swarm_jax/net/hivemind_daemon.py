"""Single requests to p2pd, bounded in time, which leave no socket behind.

hivemind's own leak theirs when the answer is an error or does not come.
"""

import asyncio
from collections.abc import Sequence

from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import (
    raise_if_failed,
    read_pbmsg_safe,
    write_pbmsg,
)
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

DaemonErrors = (TimeoutError, OSError, EOFError, P2PDaemonError)
"""It said no, it is dead, it takes too long."""


async def connect(
    p2p: P2P, peer: PeerID, maddrs: Sequence[Multiaddr], timeout_s: float
) -> None:
    """Connects to a peer, unless there is a connection, dead or alive.

    Args:
        maddrs: Where it may be; where else the daemon has seen it is tried, too.

    Raises:
        DaemonErrors: It cannot be reached.
    """
    addresses = [maddr.to_bytes() for maddr in maddrs]
    wanted = p2pd_pb2.ConnectRequest(peer=peer.to_bytes(), addrs=addresses)
    await _send(
        p2p, p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=wanted), timeout_s
    )


async def disconnect(p2p: P2P, peer: PeerID, timeout_s: float) -> None:
    """Closes all connections to a peer, so that the next stream dials anew.

    Raises:
        DaemonErrors: The daemon is dead.
    """
    unwanted = p2pd_pb2.DisconnectRequest(peer=peer.to_bytes())
    await _send(
        p2p,
        p2pd_pb2.Request(type=p2pd_pb2.Request.DISCONNECT, disconnect=unwanted),
        timeout_s,
    )


async def open_connection(
    p2p: P2P,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the daemon itself."""
    return await p2p._client.control.daemon_connector.open_connection()


async def ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: p2pd_pb2.Request,
) -> None:
    """One request over a connection to the daemon.

    Raises:
        P2PDaemonError: It said no.
    """
    await write_pbmsg(writer, request)
    response = p2pd_pb2.Response()
    await read_pbmsg_safe(reader, response)
    raise_if_failed(response)


async def _send(p2p: P2P, request: p2pd_pb2.Request, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        reader, writer = await open_connection(p2p)
        try:
            await ask(reader, writer, request)
        finally:
            writer.transport.abort()
