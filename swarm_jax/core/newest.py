"""The newest state that any peer was seen to have: a run never goes back by itself."""

from swarm_jax.core.reports import CommitRecord


class Newest:
    """What a trainer has heard of the run: from peers, directory and other trainers.

    With a single stage, or when the newest peers of all stages are gone at once, the
    peers that are left cannot know that the run was further.

    Attributes:
        position: (generation, step) of the newest state.
    """

    def __init__(self):
        self.position = 0, 0
        self._commits: dict[tuple[int, int], CommitRecord] = {}

    @property
    def last_commit(self) -> CommitRecord | None:
        """How that state was committed, if it is known."""
        return self._commits.get(self.position)

    def saw(self, generation: int, step: int) -> None:
        """Somebody has, or had, the state of ``step``."""
        self.position = max(self.position, (generation, step))
        self._commits = {p: c for p, c in self._commits.items() if p >= self.position}

    def knows(self, generation: int, record: CommitRecord) -> None:
        """How a step is committed, whether or not anybody has done so yet."""
        position = generation, record.step + 1
        if position >= self.position:
            self._commits[position] = record
