"""What a donor gives: whole states, made without holding up its event loop."""

import asyncio

import numpy as np
import pytest

from swarm_jax.core.stage_state import StageState
from swarm_jax.roles import snapshots
from swarm_jax.roles.changes import Changes
from swarm_jax.roles.messages import FetchChunk, FetchManifest
from swarm_jax.roles.snapshots import Snapshots, arrays_of

STATE = [
    np.arange(20, dtype=np.float32).reshape(4, 5),
    np.float32(7.0).reshape(()),
    np.zeros((0, 3), np.int32),
    np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
]


class Device:
    async def state(self):
        return STATE


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 8)


async def make_snapshots():
    async def settled():
        pass

    state = StageState(0)
    return Snapshots(state, Device(), Changes(state, settled))


def test_chunks_make_up_the_state():
    async def scenario():
        donor = await make_snapshots()
        manifest = (await donor.manifest(FetchManifest(stage=0))).header
        digest = next(iter(donor._kept))
        chunks = [
            (await donor.chunk(FetchChunk(stage=0, digest=digest, index=index))).arrays[
                0
            ]
            for index in range(len(manifest["chunks"]))
        ]
        donor.close()
        return b"".join(chunk.tobytes() for chunk in chunks)

    data = memoryview(asyncio.run(scenario()))
    specs = [(array.dtype.name, array.shape) for array in STATE]
    for ours, theirs in zip(arrays_of(data, specs), STATE, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_others_have_a_turn_between_chunks_that_are_copied_and_hashed():
    async def scenario():
        donor = await make_snapshots()
        asked = asyncio.ensure_future(donor.manifest(FetchManifest(stage=0)))
        turns = 0
        while not asked.done():
            turns += 1
            await asyncio.sleep(0)
        donor.close()
        return turns, len((await asked).header["chunks"])

    turns, chunks = asyncio.run(scenario())
    assert turns >= 2 * chunks
