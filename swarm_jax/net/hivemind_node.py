"""This process's libp2p daemon (p2pd) and DHT node, in the running event loop.

Not ``hivemind.DHT``, which forks a process that outlives a killed parent. Whatever can
go wrong at the start becomes a ``StartupError`` that says what to change.

It leans on private parts of the pinned hivemind: ``P2P._child``, because ``is_alive``
stays true when p2pd dies; ``P2P._UNIX_SOCKET_PREFIX``, because a p2pd that fails or is
killed leaves its sockets behind; ``P2P._make_process_args``, so that p2pd dies with us
and not before; ``P2P.is_identity_taken``, because it asks too early; ``P2P._client``,
because ``stream_open`` leaks the socket of a dial that fails, and because nobody awaits
the tasks of its connection.
"""

import asyncio
import contextlib
import errno
import logging
import math
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import ValidationError
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from swarm_jax.core.bans import Bans
from swarm_jax.errors import PeerLost, StartupError
from swarm_jax.net.hivemind_contacts import Contacts
from swarm_jax.net.hivemind_daemon import ask, open_connection
from swarm_jax.net.hivemind_folder import SocketFolder
from swarm_jax.net.hivemind_identity import answers
from swarm_jax.net.hivemind_records import RecordGuard
from swarm_jax.net.hivemind_searches import SearchingNode

PROBE_TIMEOUT_S = 2.0
NOT_ROUTED = "routing: not found"

logger = logging.getLogger(__name__)


class HivemindNode:
    """A started daemon and DHT node; made by ``start_node``.

    Attributes:
        p2p: hivemind's handle of the daemon.
        dht: hivemind's DHT node.
        peer_id: This peer's id, base58.
        bans: Peers whose streams are refused for a while, in every protocol.
        when_banned: Called with a peer that is banned now.
    """

    def __init__(
        self,
        p2p: P2P,
        dht: DHTNode,
        folder: SocketFolder,
        maddrs: Sequence[str],
        bans: Bans,
        contacts: Contacts,
    ):
        self.bans = bans
        self.when_banned: list[Callable[[str], None]] = []
        self.p2p = p2p
        self.dht = dht
        self.peer_id: str = p2p.peer_id.to_base58()
        self._folder = folder
        self._maddrs = list(maddrs)
        self._contacts = contacts
        contacts.start()

    @property
    def daemon_pid(self) -> int:
        return self.p2p._child.pid

    def ban(self, peer: str) -> None:
        """Ends a peer's streams, and refuses new ones for a while."""
        was_banned = self.banned_for_s(peer)
        ban_s = self.bans.ban(peer, asyncio.get_running_loop().time())
        if not was_banned:
            logger.warning("Banned peer %s for %g s", peer, ban_s)
        for tell in list(self.when_banned):
            tell(peer)

    def banned_for_s(self, peer: str) -> float:
        """0 when it is not banned."""
        return self.bans.left_s(peer, asyncio.get_running_loop().time())

    def visible_maddrs(self) -> list[str]:
        """Addresses for other peers' ``--initial_peers``, with ``/p2p/ID``."""
        return list(self._maddrs)

    async def died(self) -> str:
        """Waits for the end of the daemon, and returns what to tell the user.

        Without it no peer can be reached, and no call of hivemind says so.
        """
        code = await self.p2p._child.wait()
        return (
            f"The network daemon (p2pd, process {self.daemon_pid}) ended with code "
            f"{code}: this peer is cut off. Start it again (if it was killed for want "
            "of memory, dmesg says so)"
        )

    async def open_stream(
        self, peer: str, protocol: str, *, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Dials a peer's binary stream handler.

        Raises:
            PeerLost: It cannot be reached, or does not serve ``protocol``.
        """
        try:
            return await self._dial(peer, protocol, timeout_s)
        except PeerLost as error:
            stranger = NOT_ROUTED in error.reason
            if not stranger or not await self._contacts.introduce(
                PeerID.from_base58(peer), timeout_s
            ):
                raise
        return await self._dial(peer, protocol, timeout_s)

    async def published_peers(self) -> dict[str, Any]:
        """What was published as addresses, by peer id, as far as this node sees it."""
        return await self._contacts.published()

    def doubt(self, peer: str) -> None:
        """A stream to a peer has stalled: if its connection is dead, it is closed."""
        self._contacts.doubt(PeerID.from_base58(peer))

    async def _dial(
        self, peer: str, protocol: str, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        writer = None
        try:
            async with asyncio.timeout(timeout_s):
                wanted = p2pd_pb2.StreamOpenRequest(
                    peer=PeerID.from_base58(peer).to_bytes(),
                    proto=[protocol],
                    timeout=math.ceil(timeout_s),
                )
                kind = p2pd_pb2.Request.STREAM_OPEN
                request = p2pd_pb2.Request(type=kind, streamOpen=wanted)
                reader, writer = await open_connection(self.p2p)
                await ask(reader, writer, request)
                return reader, writer
        except BaseException as error:
            if writer is not None:
                writer.transport.abort()
            if isinstance(error, TimeoutError):
                raise PeerLost(peer, f"no connection in {timeout_s:g} s") from error
            if isinstance(
                error, OSError | EOFError | P2PDaemonError | ValueError
            ):  # ValueError: not a peer id.
                raise PeerLost(peer, f"cannot be reached: {error}") from error
            raise

    async def close(self) -> None:
        """Ends the daemon and removes its sockets. May be called twice."""
        await self._contacts.close()
        # Not dht.shutdown(): it asks the daemon first, for ever if that is dead.
        self.dht.is_alive = False
        await _shut_down([self.p2p], self._folder)


async def start_node(
    *,
    initial_peers: Sequence[str] = (),
    host_maddrs: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
    announce_maddrs: Sequence[str] = (),
    identity_path: str | Path | None = None,
    startup_timeout_s: float = 15.0,
    silence_s: float = 3.0,
    touch_every_s: float = 5.0,
    bans: Bans | None = None,
) -> HivemindNode:
    """Starts p2pd and joins the DHT; tries twice if a busy peer did not let it in.

    Args:
        initial_peers: Addresses of running peers; none starts a new swarm.
        host_maddrs: Where to listen; port 0 takes a free one.
        announce_maddrs: Addresses to tell others instead, with explicit ports.
        identity_path: Key file that fixes the peer id; made when missing.
        silence_s: A peer that does not answer a question of the DHT for so long is
            left. A frozen one holds up reads and writes that long.
        touch_every_s: How often those who were left are asked again.
        bans: How long peers are banned that send something malformed.

    Raises:
        StartupError: It did not start; the message says what to change.
    """
    _check_maddrs("--initial_peers", initial_peers, need_peer=True)
    _check_maddrs("--announce_maddrs", announce_maddrs, need_port=True)
    _check_maddrs("--host_maddrs", host_maddrs)
    _check_ports(host_maddrs)
    if identity_path is not None:
        _check_identity(Path(identity_path))

    async def start() -> HivemindNode:
        return await _start(
            initial_peers=initial_peers,
            host_maddrs=host_maddrs,
            announce_maddrs=announce_maddrs,
            identity_path=identity_path,
            startup_timeout_s=startup_timeout_s,
            silence_s=silence_s,
            touch_every_s=touch_every_s,
            bans=bans or Bans(),
        )

    try:
        return await start()
    except _NotLetIn as error:
        logger.warning("%s; trying again", error)
        return await start()


class _NotLetIn(StartupError):
    """An initial peer takes connections, but not this one."""


async def _start(
    *,
    initial_peers: Sequence[str],
    host_maddrs: Sequence[str],
    announce_maddrs: Sequence[str],
    identity_path: str | Path | None,
    startup_timeout_s: float,
    silence_s: float,
    touch_every_s: float,
    bans: Bans,
) -> HivemindNode:
    folder = SocketFolder()
    daemons: list[P2P] = []
    try:
        async with asyncio.timeout(startup_timeout_s):
            p2p = await _daemon_class(folder, daemons).create(
                initial_peers=list(initial_peers) or None,
                host_maddrs=list(host_maddrs),
                announce_maddrs=list(announce_maddrs) or None,
                identity_path=None if identity_path is None else str(identity_path),
                startup_timeout=startup_timeout_s,
            )
            # Our reads ask for the latest: a cache would be kept fresh for nobody.
            guard = RecordGuard()
            dht = await SearchingNode.create(
                p2p=p2p,
                record_validator=guard,
                initial_peers=list(initial_peers) or None,
                cache_locally=False,
                cache_nearest=0,
                cache_on_store=False,
                cache_refresh_before_expiry=0,
            )
            guard.watch(dht)
            dht.protocol.wait_timeout = silence_s  # not at the start, which is slow
            # They fail when the daemon dies, which ``died`` tells; nobody awaits them.
            for task in (
                p2p._client.control._read_task,
                p2p._client.control._write_task,
            ):
                task.add_done_callback(_retrieve)
            maddrs = [str(maddr) for maddr in await p2p.get_visible_maddrs()]
            contacts = Contacts(
                p2p,
                dht,
                maddrs=maddrs,
                initial_peers=initial_peers,
                silence_s=silence_s,
                every_s=touch_every_s,
            )
            return HivemindNode(p2p, dht, folder, maddrs, bans, contacts)
    except BaseException as error:
        await _shut_down(daemons, folder)
        if isinstance(error, TimeoutError):
            text = f"no connection within {startup_timeout_s:g} s"
        elif isinstance(error, P2PDaemonError | ValidationError | RuntimeError):
            text = str(error)
        else:
            raise
        raise await _explain(text, initial_peers, identity_path) from error


def _retrieve(task: asyncio.Task) -> None:
    """Or asyncio prints a traceback when the task is collected."""
    if not task.cancelled():
        task.exception()


def _daemon_class(folder: SocketFolder, daemons: list[P2P]) -> type[P2P]:
    class Daemon(P2P):
        """Keeps its sockets in a folder of ours, and is known from its first moment."""

        _UNIX_SOCKET_PREFIX = f"/unix{folder.path}/"

        @staticmethod
        def _make_process_args(*args, **kwargs) -> list[str]:
            """It ends when we do, and only then: Ctrl-C in a terminal is meant for us.

            p2pd ends when its connection to us does; before there is one, so.
            """
            command = P2P._make_process_args(*args, **kwargs)
            if setpriv := shutil.which("setpriv"):
                command = [setpriv, "--pdeathsig", "KILL", *command]
            if setsid := shutil.which("setsid"):
                command = [setsid, *command]
            return command

        @classmethod
        async def is_identity_taken(cls, identity_path: str, **settings) -> bool:
            peer = PeerID.from_identity(Path(identity_path).read_bytes())
            probe = await cls.create(dht_mode="client", **settings)
            try:
                return await answers(probe, peer)
            finally:
                await probe.shutdown()

        def __init__(self):
            super().__init__()
            daemons.append(self)

    return Daemon


async def _shut_down(daemons: Sequence[P2P], folder: SocketFolder) -> None:
    for daemon in daemons:
        if daemon._reader_task is not None and daemon._reader_task.done():
            # It has ended by itself: a signal now would confuse asyncio's watcher.
            await daemon._child.wait()
        await daemon.shutdown()
    # hivemind has cancelled its tasks without waiting for them.
    await asyncio.sleep(0)
    folder.remove()


def _check_maddrs(
    flag: str,
    maddrs: Sequence[str],
    *,
    need_peer: bool = False,
    need_port: bool = False,
) -> None:
    for text in maddrs:
        try:
            maddr = Multiaddr(text)
        except ValueError as error:
            raise StartupError(
                f"{flag}: {text!r} is no multiaddress ({error}). They look like "
                "/ip4/203.0.113.7/tcp/31330" + ("/p2p/12D3KooW..." if need_peer else "")
            ) from error
        if "tcp" not in maddr:
            raise StartupError(
                f"{flag}: {text} is no TCP address. Use /ip4/.../tcp/PORT (QUIC loses "
                "data with this version of p2pd)"
            )
        if need_port and maddr["tcp"] == "0":
            raise StartupError(f"{flag}: {text} has port 0. Name the port to announce")
        if need_peer and "p2p" not in maddr:
            raise StartupError(
                f"{flag}: {text} names no peer. Copy the whole address that the other "
                f"peer printed at its start: {text}/p2p/12D3KooW..."
            )


def _check_ports(host_maddrs: Sequence[str]) -> None:
    """p2pd listens with SO_REUSEPORT: two of them would share a port without a word."""
    for text in host_maddrs:
        maddr = Multiaddr(text)
        name = "ip6" if "ip6" in maddr else "ip4"
        if name not in maddr:
            continue
        family = socket.AF_INET6 if name == "ip6" else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((maddr[name], int(maddr["tcp"])))
            except OSError as error:
                hint = {
                    errno.EADDRINUSE: "The port is in use: take another, or 0 for any",
                    errno.EADDRNOTAVAIL: "This machine has no such address: use "
                    "/ip4/0.0.0.0/tcp/PORT for all that it has",
                }.get(error.errno, "Take another address or port")
                raise StartupError(
                    f"--host_maddrs: cannot listen on {text} ({error.strerror}). {hint}"
                ) from error


def _check_identity(path: Path) -> None:
    if not path.exists() and path.parent.is_dir():
        return
    try:
        PeerID.from_identity(path.read_bytes())
    except OSError as error:
        raise StartupError(
            f"--identity_path: cannot use {path} ({error.strerror}). Name a file in a "
            "folder that exists; it is made when missing"
        ) from error
    except (DecodeError, ValueError) as error:
        raise StartupError(
            f"--identity_path: {path} holds no identity. Name another file, or remove "
            "it to have a new one made"
        ) from error


async def _explain(
    text: str, initial_peers: Sequence[str], identity_path: str | Path | None
) -> StartupError:
    peers = ", ".join(initial_peers)
    if "already taken" in text:
        return StartupError(
            f"--identity_path: a running peer has the identity of {identity_path}. "
            "Stop that peer, or name another file"
        )
    if "bootstrap peers" in text or "no connection" in text:
        answering = [peer for peer in initial_peers if await _accepts(Multiaddr(peer))]
        if answering:
            return _NotLetIn(
                f"--initial_peers: {answering[0]} accepts connections, but not as that "
                "peer. Copy the address again from its start-up lines: without "
                "--identity_path the part after /p2p/ is a new one at each start"
            )
        return StartupError(
            f"--initial_peers: nobody answers at {peers} ({text}). Is that peer "
            "running, is the port right, does a firewall stand between?"
        )
    if "none of the initial_peers responded" in text:
        return StartupError(
            f"--initial_peers: {peers} runs no DHT node of hivemind. Use the address "
            "of a bootstrap, trainer or stage server"
        )
    return StartupError(f"The network daemon (p2pd) did not start: {text}")


async def _accepts(maddr: Multiaddr) -> bool:
    host = next(
        (
            maddr[name]
            for name in ("ip4", "ip6", "dns4", "dns6", "dns")
            if name in maddr
        ),
        None,
    )
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, int(maddr["tcp"]))
        writer.close()
        return True
    return False
