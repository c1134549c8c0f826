"""Moves that people ask for: who is to serve another stage (``scripts.migrate``)."""

from swarm_jax.net.protocols import Directory


class Wishes:
    """Kept in the directory until the leader has read them.

    Args:
        prefix: Of the run's keys.
    """

    def __init__(self, directory: Directory, prefix: str):
        self._directory = directory
        self._key = f"{prefix}.wishes"
        self._read: set[tuple[str, str]] = set()

    async def make(self, peer: str, stage: int, *, name: str, life_s: float) -> None:
        """Asks that a peer serves ``stage``.

        Args:
            name: Of the wish, unique: each is granted once.
            life_s: After this it is not granted any more.
        """
        await self._directory.store(self._key, peer, [name, stage], expires_in_s=life_s)

    async def new(self) -> dict[str, int]:
        """Stages by peer, of the wishes that were not read before."""
        found = {}
        for peer, record in (await self._directory.get(self._key)).items():
            match record.value:
                case [str() as name, int() as stage] if (peer, name) not in self._read:
                    self._read.add((peer, name))
                    found[peer] = stage
        return found
