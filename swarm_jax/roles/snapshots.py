"""A stage's state in hashed chunks: what donors give and joiners put together.

The state (parameters and optimizer state, leaf by leaf) is one string of bytes, cut
into chunks of ``CHUNK_BYTES``. A manifest names the position and each chunk's SHA-256,
so that a joiner may take chunks from several donors, keep what it has when one dies,
and tell who sent a wrong one.
"""

import asyncio
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swarm_jax.core.reports import DRAINING, ONLINE
from swarm_jax.core.stage_state import Position, StageState
from swarm_jax.net.protocols import ArraySpec, Message
from swarm_jax.roles.changes import Changes
from swarm_jax.roles.compute import Compute
from swarm_jax.roles.messages import (
    FetchChunk,
    FetchManifest,
    MalformedHeader,
    Status,
    commit_from_header,
    read,
    refusal,
)

CHUNK_BYTES = 4 << 20
KEPT_S = 60.0
"""How long a donor keeps a snapshot that nobody asks for: it costs host memory."""
KEPT_SNAPSHOTS = 2


def state_bytes(specs: Sequence[ArraySpec]) -> int:
    return sum(np.dtype(name).itemsize * math.prod(shape) for name, shape in specs)


def num_chunks(num_bytes: int) -> int:
    return max(1, -(-num_bytes // CHUNK_BYTES))


def chunk_digest(chunk: bytes | memoryview) -> str:
    return hashlib.sha256(chunk).hexdigest()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a state is made of.

    Attributes:
        position: Which parameters they are.
        chunks: SHA-256 of each chunk.
    """

    position: Position
    chunks: tuple[str, ...]

    @property
    def digest(self) -> str:
        text = repr((self.position, self.chunks))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_header(self) -> dict[str, Any]:
        commit = self.position.last_commit
        return {
            "status": Status.OK,
            "generation": self.position.generation,
            "step": self.position.step,
            "lineage": self.position.lineage,
            "last_commit": commit and [commit.step, commit.gradient_norm],
            "chunks": list(self.chunks),
        }


def manifest_from_header(header: Mapping[str, Any], expected_chunks: int) -> Manifest:
    """Reads the reply to ``FetchManifest``.

    Raises:
        MalformedHeader: It is none, or not of this stage's state.
    """
    position = Position(
        read(header, "generation", "int"),
        read(header, "step", "int"),
        read(header, "lineage", "str"),
        commit_from_header(header),
    )
    chunks = tuple(read(header, "chunks", "list[str]"))
    if len(chunks) != expected_chunks:
        raise MalformedHeader(
            f"a state of {len(chunks)} chunks; this stage's has {expected_chunks}"
        )
    return Manifest(position, chunks)


class Snapshots:
    """Gives this peer's state to joiners.

    Snapshots are kept for a while, so that a download is of one step while the swarm
    trains on; a joiner that asks after the next commit gets a new one.
    """

    def __init__(self, state: StageState, compute: Compute, changes: Changes):
        self._state = state
        self._compute = compute
        self._changes = changes
        self._turn = asyncio.Lock()
        self._kept: dict[str, tuple[Manifest, memoryview]] = {}
        self._expiry: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def manifest(self, request: FetchManifest) -> Message:
        async with self._turn:
            has_state = self._state.state in (ONLINE, DRAINING)
            if request.stage != self._state.stage or not has_state:
                return refusal(Status.NOT_ONLINE)
            for manifest, _ in self._kept.values():
                if manifest.position == self._state.position:
                    return self._give(manifest)
            position, arrays = await self._changes.read(self._read())
            view = await _joined(arrays)
            manifest = Manifest(position, await _digests(view))
            while len(self._kept) >= KEPT_SNAPSHOTS:
                self._forget(next(iter(self._kept)))
            self._kept[manifest.digest] = manifest, view
            return self._give(manifest)

    async def chunk(self, request: FetchChunk) -> Message:
        if request.digest not in self._kept:
            return refusal(Status.UNKNOWN_STATE)
        manifest, view = self._kept[request.digest]
        if request.index >= len(manifest.chunks):
            return refusal(Status.UNKNOWN_STATE)
        self._keep(request.digest)
        chunk = view[request.index * CHUNK_BYTES :][:CHUNK_BYTES]
        return Message({"status": Status.OK}, [np.frombuffer(chunk, np.uint8)])

    def close(self) -> None:
        for timer in self._expiry.values():
            timer.cancel()
        self._expiry.clear()
        self._kept.clear()

    async def _read(self) -> tuple[Position, list[np.ndarray]]:
        position = self._state.position
        return position, await self._compute.state()

    def _give(self, manifest: Manifest) -> Message:
        self._keep(manifest.digest)
        return Message(manifest.to_header())

    def _keep(self, digest: str) -> None:
        if digest in self._expiry:
            self._expiry[digest].cancel()
        self._expiry[digest] = asyncio.get_running_loop().call_later(
            KEPT_S, self._forget, digest
        )

    def _forget(self, digest: str) -> None:
        self._expiry.pop(digest).cancel()
        del self._kept[digest]


async def _digests(view: memoryview) -> tuple[str, ...]:
    """Chunk by chunk, so that heartbeats go out between them."""
    digests = []
    for start in range(0, max(1, len(view)), CHUNK_BYTES):
        digests.append(chunk_digest(view[start : start + CHUNK_BYTES]))
        await asyncio.sleep(0)
    return tuple(digests)


async def _joined(arrays: Sequence[np.ndarray]) -> memoryview:
    """Their bytes, one after the other; chunk by chunk, as ``_digests``."""
    joined = memoryview(bytearray(sum(array.nbytes for array in arrays)))
    end = 0
    for array in arrays:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            joined[end : end + len(chunk)] = chunk
            end += len(chunk)
            await asyncio.sleep(0)
    return joined.toreadonly()


def arrays_of(data: memoryview, specs: Sequence[ArraySpec]) -> list[np.ndarray]:
    """The arrays whose bytes, one after the other, are ``data``."""
    arrays, start = [], 0
    for name, shape in specs:
        dtype = np.dtype(name)
        size = dtype.itemsize * math.prod(shape)
        arrays.append(np.frombuffer(data[start : start + size], dtype).reshape(shape))
        start += size
    return arrays
