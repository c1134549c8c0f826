"""Fetches a stage's state from several stage peers at once, chunk by chunk."""

import asyncio
import logging
from collections.abc import Sequence

from swarm_jax.errors import PeerError
from swarm_jax.net.protocols import Message, PeerCalls
from swarm_jax.roles.messages import (
    FetchChunk,
    FetchManifest,
    MalformedHeader,
    Request,
    Status,
    to_header,
)
from swarm_jax.roles.snapshots import (
    CHUNK_BYTES,
    Manifest,
    chunk_digest,
    manifest_from_header,
    num_chunks,
)

logger = logging.getLogger(__name__)

CHUNKS_PER_DONOR = 2
"""Requests to one donor at once: it reads the next chunk while one is on its way."""


class NoDonor(Exception):
    """No stage peer gave what was asked for."""


class Download:
    """What has been fetched so far; chunks are known by their hash, not by their donor.

    So what one donor gave stays of use when it dies, and when the next one's state has
    chunks in common.

    Args:
        swarm: The swarm's fingerprint.
        stage: Whose state.
        num_bytes: Of that state.
        timeout_s: Bound on one chunk.
    """

    def __init__(
        self, calls: PeerCalls, swarm: str, stage: int, num_bytes: int, timeout_s: float
    ):
        self._calls = calls
        self._swarm = swarm
        self._stage = stage
        self._num_bytes = num_bytes
        self._timeout_s = timeout_s
        self._have: dict[str, bytes] = {}
        self._liars: set[str] = set()

    def honest(self, peers: Sequence[str]) -> list[str]:
        """Those that have not sent a wrong chunk."""
        return [peer for peer in peers if peer not in self._liars]

    def clear(self) -> None:
        """Frees what has come; who sent wrong chunks is not forgotten."""
        self._have.clear()

    async def fetch(self, peers: Sequence[str]) -> tuple[Manifest, memoryview]:
        """The newest state that any of ``peers`` has.

        Raises:
            NoDonor: None of them gave it whole. What came is kept for the next try.
        """
        manifest, donors = await self._choose(peers)
        self._have = {h: c for h, c in self._have.items() if h in manifest.chunks}
        missing = [i for i, h in enumerate(manifest.chunks) if h not in self._have]
        while missing:
            if not donors:
                raise NoDonor(
                    f"{len(missing)} of {len(manifest.chunks)} chunks are missing"
                )
            failed: set[str] = set()
            async with asyncio.TaskGroup() as tasks:
                for donor in donors * CHUNKS_PER_DONOR:
                    tasks.create_task(self._take(donor, manifest, missing, failed))
            donors = [donor for donor in donors if donor not in failed]
        return manifest, memoryview(b"".join(self._have[h] for h in manifest.chunks))

    async def _choose(self, peers: Sequence[str]) -> tuple[Manifest, list[str]]:
        """The newest manifest of the most donors, and these."""
        answers = await asyncio.gather(*(self._manifest(peer) for peer in peers))
        donors: dict[Manifest, list[str]] = {}
        for peer, manifest in zip(peers, answers, strict=True):
            if manifest is not None:
                donors.setdefault(manifest, []).append(peer)
        if not donors:
            raise NoDonor("no stage peer gives its state")
        best = max(donors, key=lambda m: (*m.position[:2], len(donors[m]), m.digest))
        return best, donors[best]

    async def _manifest(self, peer: str) -> Manifest | None:
        try:
            reply = await self._ask(peer, FetchManifest(stage=self._stage))
            if reply.header.get("status") != Status.OK:
                return None
            return manifest_from_header(reply.header, num_chunks(self._num_bytes))
        except (PeerError, MalformedHeader) as error:
            logger.warning("no manifest from %s: %s", peer[-6:], error)
            return None

    async def _take(
        self, donor: str, manifest: Manifest, missing: list[int], failed: set[str]
    ) -> None:
        """Takes chunks that nobody else takes, until none is missing or it fails."""
        while missing and donor not in failed:
            index = missing.pop()
            chunk = await self._chunk(donor, manifest, index)
            if chunk is None:
                missing.append(index)
                failed.add(donor)
                return
            self._have[manifest.chunks[index]] = chunk

    async def _chunk(self, donor: str, manifest: Manifest, index: int) -> bytes | None:
        request = FetchChunk(stage=self._stage, digest=manifest.digest, index=index)
        try:
            reply = await self._ask(donor, request)
        except PeerError as error:
            logger.warning("donor %s failed: %s", donor[-6:], error)
            return None
        if reply.header.get("status") != Status.OK:
            return None
        chunk = reply.arrays[0].tobytes() if len(reply.arrays) == 1 else b""
        num_bytes = min(CHUNK_BYTES, self._num_bytes - index * CHUNK_BYTES)
        right = (
            len(chunk) == num_bytes and chunk_digest(chunk) == manifest.chunks[index]
        )
        if not right:
            logger.warning(
                "donor %s sent a wrong chunk %d of step %d: it is not asked again",
                donor,
                index,
                manifest.position.step,
            )
            self._liars.add(donor)
            return None
        return chunk

    async def _ask(self, peer: str, request: Request) -> Message:
        message = Message(to_header(request, self._swarm))
        return await self._calls.call(peer, message, timeout_s=self._timeout_s)
