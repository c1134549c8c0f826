"""What a stage server needs of the place where its stage's state is saved.

Adapters: files written by Orbax (``stage.saved_stage``), and memory that outlives its
peers (``sim.checkpoints``).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from swarm_jax.errors import CheckpointError

Arrays = Sequence[np.ndarray]


class SavedPosition(NamedTuple):
    """``core.stage_state.Position`` in plain values; ``stage`` does not know core."""

    generation: int
    step: int
    lineage: str
    last_commit: tuple[int, float | None] | None


class Checkpoints(Protocol):
    """Saved states of one stage, by step."""

    def steps(self) -> Sequence[int]:
        """Those that are complete and that this stage can be restored at, ascending.

        Cheap: it is asked in every round.
        """
        ...

    def keeps(self, *, to_shared: bool) -> bool:
        """Whether ``save`` has anywhere to write to."""
        ...

    async def save(
        self, position: SavedPosition, state: Arrays, *, to_shared: bool
    ) -> str:
        """Saves a state; it counts for nothing before ``complete``.

        Args:
            state: As ``Compute.state`` gives it.
            to_shared: Also to the folder of the whole swarm's checkpoints; of all peers
                of a stage one is asked to.

        Returns:
            A digest of what was saved.

        Raises:
            CheckpointError: It could not be saved; the message says why.
        """
        ...

    async def complete(
        self,
        step: int,
        generation: int,
        digests: Mapping[int, str],
        summary: Mapping[str, float],
    ) -> None:
        """Notes that all stages have saved this step.

        Args:
            digests: What ``save`` returned, by stage.
            summary: The run's figures at that step.

        Raises:
            CheckpointError: It could not be noted.
        """
        ...

    async def load(self, step: int) -> tuple[SavedPosition, Arrays]:
        """One of ``steps``; if it turns out to be damaged, it is none any more.

        Raises:
            CheckpointError: It cannot be restored.
        """
        ...


class NoCheckpoints:
    """``Checkpoints`` of a server that has no folder to save to."""

    def steps(self) -> Sequence[int]:
        return ()

    def keeps(self, *, to_shared: bool) -> bool:
        return False

    async def save(
        self, position: SavedPosition, state: Arrays, *, to_shared: bool
    ) -> str:
        raise CheckpointError("this peer has no folder for checkpoints")

    async def complete(
        self,
        step: int,
        generation: int,
        digests: Mapping[int, str],
        summary: Mapping[str, float],
    ) -> None:
        """There is nothing to note it in."""

    async def load(self, step: int) -> tuple[SavedPosition, Arrays]:
        raise CheckpointError("this peer has no folder for checkpoints")
