"""Peers that this one has met, and how it finds them again.

hivemind forgets a node that has not answered once, and asks only nodes that it
remembers. So a peer that was frozen or cut off for seconds (a laptop that slept) has
forgotten all others, and they have forgotten it, for good. Here those who were met are
asked now and then whether they are there; who answers is in the table again, and has us
in its own.

libp2p, in turn, keeps using a connection that is dead in one direction for 40 s. Who
does not answer on a connection has it closed, and the next stream dials anew.

It leans on ``DHTNode.protocol`` and ``DHTNode.blacklist`` of the pinned hivemind.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hivemind.dht.node import DHTNode
from hivemind.p2p import P2P, PeerID
from hivemind.utils import get_dht_time
from hivemind.utils.multiaddr import Multiaddr

from swarm_jax.net.hivemind_daemon import DaemonErrors, connect, disconnect
from swarm_jax.net.hivemind_records import addresses_in, entries_of

ADDRESSES_KEY = "swarm_jax.addresses"
ADDRESSES_LIFE_S = 240.0
PUBLISH_EVERY_S = ADDRESSES_LIFE_S / 4

REMEMBERED_S = 3600.0
ASKED_PER_TURN = 4
"""Beside the initial peers: what a turn costs when many are gone for good."""


@dataclass(slots=True)
class Contact:
    """A peer that was met. ``maddrs``: as it published them, if it did."""

    seen_s: float
    maddrs: list[Multiaddr] = field(default_factory=list)


class Contacts:
    """Of one node; ``start`` and ``close`` are called once.

    Args:
        maddrs: Where others reach this node.
        initial_peers: Addresses of those it was told of, which it never forgets.
        silence_s: Bound on each question.
        every_s: Time between two turns of asking.
    """

    def __init__(
        self,
        p2p: P2P,
        dht: DHTNode,
        *,
        maddrs: Sequence[str],
        initial_peers: Sequence[str],
        silence_s: float,
        every_s: float,
    ):
        self._p2p = p2p
        self._dht = dht
        self._maddrs = list(maddrs)
        self._silence_s = silence_s
        self._every_s = every_s
        self._initial: dict[PeerID, list[Multiaddr]] = {}
        for text in initial_peers:
            peer = PeerID.from_base58(Multiaddr(text)["p2p"])
            self._initial.setdefault(peer, []).append(Multiaddr(text.split("/p2p/")[0]))
        self._met: dict[PeerID, Contact] = {}
        self._doubts: dict[PeerID, asyncio.Task] = {}
        self._tasks: list[asyncio.Task] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.ensure_future(self._keep_published()),
            asyncio.ensure_future(self._keep_in_touch()),
        ]

    async def close(self) -> None:
        tasks = [*self._tasks, *self._doubts.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def published(self) -> dict[str, Any]:
        """What was published as addresses, by peer id, as far as this node sees it."""
        found = await self._dht.get(ADDRESSES_KEY, latest=True)
        return {peer: entry.value for peer, entry in entries_of(found)}

    async def introduce(self, peer: PeerID, timeout_s: float) -> bool:
        """Tells the daemon where a peer is, from what that peer published."""
        try:
            async with asyncio.timeout(timeout_s):
                published = await self.published()
                maddrs = addresses_in(published.get(peer.to_base58()))
                if maddrs:
                    await connect(self._p2p, peer, maddrs, timeout_s)
                return bool(maddrs)
        except DaemonErrors:
            return False

    def doubt(self, peer: PeerID) -> None:
        """Asks a peer that has stalled whether it is there, in the background."""
        if peer not in self._doubts:
            self._doubts[peer] = asyncio.ensure_future(self._ask(peer))
            self._doubts[peer].add_done_callback(lambda _: self._doubts.pop(peer))

    async def _keep_published(self) -> None:
        """Publishes this peer's addresses, and learns those of others, for ever.

        libp2p's own routing keeps only addresses that it takes for public or private;
        it finds nobody where, say, a test network or a VPN uses another range.
        """
        while True:
            await self._dht.store(
                ADDRESSES_KEY,
                self._maddrs,
                get_dht_time() + ADDRESSES_LIFE_S,
                subkey=self._p2p.peer_id.to_base58(),
            )
            for text, value in (await self.published()).items():
                with contextlib.suppress(ValueError):  # Not a peer id.
                    self._meet(PeerID.from_base58(text), addresses_in(value))
            await asyncio.sleep(PUBLISH_EVERY_S)

    async def _keep_in_touch(self) -> None:
        """Asks those who were met and are forgotten, a few at a time, for ever."""
        for turn in itertools.count():
            await asyncio.sleep(self._every_s)
            self._look_at_table()
            asked = [self._find_again(peer) for peer in self._forgotten(turn)]
            await asyncio.gather(*asked)

    def _look_at_table(self) -> None:
        """Who is in the table has answered since it last failed: it is welcome."""
        for peer in self._dht.protocol.routing_table.peer_id_to_uid:
            self._meet(peer)
            if peer in self._dht.blacklist:
                self._dht.blacklist.register_success(peer)
        oldest_s = self._now_s() - REMEMBERED_S
        self._met = {p: c for p, c in self._met.items() if c.seen_s >= oldest_s}

    def _forgotten(self, turn: int) -> Iterable[PeerID]:
        """All initial peers and a few others that the table lacks, in turns."""
        table = self._dht.protocol.routing_table
        initial = [peer for peer in self._initial if peer not in table]
        others = [p for p in self._met if p not in table and p not in self._initial]
        start = turn * ASKED_PER_TURN % max(1, len(others))
        return initial + (others[start:] + others[:start])[:ASKED_PER_TURN]

    def _meet(self, peer: PeerID, maddrs: Sequence[Multiaddr] = ()) -> None:
        if peer == self._p2p.peer_id:
            return
        contact = self._met.setdefault(peer, Contact(self._now_s()))
        contact.seen_s = self._now_s()
        if maddrs:
            contact.maddrs = list(maddrs)

    async def _find_again(self, peer: PeerID) -> None:
        maddrs = [*self._initial.get(peer, ())]
        maddrs += self._met[peer].maddrs if peer in self._met else []
        with contextlib.suppress(*DaemonErrors):
            await connect(self._p2p, peer, maddrs, self._silence_s)
            await self._ask(peer)

    async def _ask(self, peer: PeerID) -> None:
        """Has each in the table of the other, if the peer answers on a new stream."""
        if await self._dht.protocol.call_ping(peer) is None:
            with contextlib.suppress(*DaemonErrors):
                await disconnect(self._p2p, peer, self._silence_s)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()
