"""A folder of checkpoints that is kept in memory, and outlives the peers that write it."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from swarm_jax.roles.checkpoints import SavedPosition

SAVE_S = 0.3


class MemoryFolder:
    """What all stages have saved; ``of_stage`` is one stage's ``Checkpoints``."""

    def __init__(self, save_s: float = SAVE_S):
        self.save_s = save_s
        self.states: dict[str, tuple[int, SavedPosition, list[np.ndarray]]] = {}
        self.complete: dict[int, dict[int, str]] = {}

    def of_stage(self, stage: int) -> "MemoryCheckpoints":
        return MemoryCheckpoints(self, stage)


class MemoryCheckpoints:
    """``roles.checkpoints.Checkpoints`` of one stage."""

    def __init__(self, folder: MemoryFolder, stage: int):
        self._folder = folder
        self._stage = stage

    def steps(self) -> Sequence[int]:
        return sorted(self._folder.complete)

    def keeps(self, *, to_shared: bool) -> bool:
        return to_shared

    async def save(
        self, position: SavedPosition, state: Sequence[np.ndarray], *, to_shared: bool
    ) -> str:
        copies = [np.array(array) for array in state]
        await asyncio.sleep(self._folder.save_s)
        digest = hashlib.sha256(repr(position).encode())
        for array in copies:
            digest.update(array.tobytes())
        name = digest.hexdigest()
        self._folder.states[name] = self._stage, position, copies
        return name

    async def complete(
        self,
        step: int,
        generation: int,
        digests: Mapping[int, str],
        summary: Mapping[str, float],
    ) -> None:
        for stage, digest in digests.items():
            saved_stage, position, _ = self._folder.states[digest]
            assert (saved_stage, position.step) == (stage, step)
            assert position.generation == generation
        self._folder.complete[step] = dict(digests)

    async def load(self, step: int) -> tuple[SavedPosition, list[np.ndarray]]:
        digest = self._folder.complete[step][self._stage]
        _, position, state = self._folder.states[digest]
        await asyncio.sleep(self._folder.save_s)
        return position, state
