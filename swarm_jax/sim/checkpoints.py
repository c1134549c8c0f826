"""A folder of checkpoints in memory, which outlives the peers that write it."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from swarm_jax.errors import CheckpointError
from swarm_jax.roles.checkpoints import SavedPosition

SAVE_S = 0.1


class MemoryFolder:
    """What all stages have saved; ``of_stage`` is one stage's ``Checkpoints``.

    Attributes:
        damaged: Steps that cannot be read any more.
    """

    def __init__(self, name: str = "memory", save_s: float = SAVE_S):
        self.name = name
        self.save_s = save_s
        self.states: dict[str, tuple[int, SavedPosition, list[np.ndarray]]] = {}
        self.complete: dict[int, dict[int, str]] = {}
        self.damaged: set[int] = set()

    def of_stage(self, stage: int) -> "MemoryCheckpoints":
        return MemoryCheckpoints(self, stage)


class MemoryCheckpoints:
    """``roles.checkpoints.Checkpoints`` of one stage."""

    def __init__(self, folder: MemoryFolder, stage: int):
        self.folder = folder.name
        self._folder = folder
        self._stage = stage
        self._known_damaged: set[int] = set()

    def steps(self) -> Sequence[int]:
        return sorted(
            step
            for step, digests in self._folder.complete.items()
            if step not in self._known_damaged
            and digests[self._stage] in self._folder.states
        )

    async def save(self, position: SavedPosition, state: Sequence[np.ndarray]) -> str:
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
            if digest in self._folder.states:
                saved_stage, position, _ = self._folder.states[digest]
                assert (saved_stage, position.step) == (stage, step)
                assert position.generation == generation
        self._folder.complete[step] = dict(digests)

    async def load(self, step: int) -> tuple[SavedPosition, list[np.ndarray]]:
        if step in self._folder.damaged:
            self._known_damaged.add(step)
            raise CheckpointError("it is damaged")
        digest = self._folder.complete[step][self._stage]
        _, position, state = self._folder.states[digest]
        await asyncio.sleep(self._folder.save_s)
        return position, state

    def close(self) -> None:
        """There is nothing to close."""
