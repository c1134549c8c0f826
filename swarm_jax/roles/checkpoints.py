"""What a stage server needs of the place where its stage's state is saved.

Adapters: files written by Orbax (``stage.saved_stage``), and memory that outlives its
peers (``sim.checkpoints``).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from swarm_jax.errors import CheckpointError

Arrays = Sequence[np.ndarray]
Digests = Mapping[int, str]
Figures = Mapping[str, float]

NO_FOLDER = "this peer has no folder for checkpoints"


class SavedPosition(NamedTuple):
    """``core.stage_state.Position`` in plain values; ``stage`` does not know core."""

    generation: int
    step: int
    lineage: str
    last_commit: tuple[int, float | None] | None


class Checkpoints(Protocol):
    """Saved states of one stage, by step.

    Attributes:
        folder: Names the place, the same for all peers who share it; empty for none.
    """

    folder: str

    def steps(self) -> Sequence[int]:
        """Those that are complete and that this stage can be restored at, ascending.

        Cheap: it is asked in every round.
        """
        ...

    async def save(self, position: SavedPosition, state: Arrays) -> str:
        """Saves a state; it counts for nothing before ``complete``.

        Args:
            state: As ``Compute.state`` gives it.

        Returns:
            A digest of what was saved.

        Raises:
            CheckpointError: It could not be saved; the message says why.
        """
        ...

    async def complete(
        self, step: int, generation: int, digests: Digests, summary: Figures
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

    def close(self) -> None:
        """Nothing is asked for any more; what is being saved goes on."""
        ...


class NoCheckpoints:
    """``Checkpoints`` of a server that saves nothing."""

    folder = ""

    def steps(self) -> Sequence[int]:
        return ()

    async def save(self, position: SavedPosition, state: Arrays) -> str:
        raise CheckpointError(NO_FOLDER)

    async def complete(
        self, step: int, generation: int, digests: Digests, summary: Figures
    ) -> None:
        """There is nothing to note it in."""

    async def load(self, step: int) -> tuple[SavedPosition, Arrays]:
        raise CheckpointError(NO_FOLDER)

    def close(self) -> None:
        """There is nothing to close."""
