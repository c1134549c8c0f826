"""Who leads: a lease in the directory, with a term.

Two trainers may believe to lead for a moment, since directory reads lag behind writes.
That costs time, never correctness: their rounds are ordered, and peers keep the promise
given to the newer one (design, section 5).
"""

import asyncio
from typing import Any

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.newest import Newest
from swarm_jax.errors import ConfigError
from swarm_jax.net.protocols import Directory
from swarm_jax.roles.messages import MalformedHeader, commit_from_header, read
from swarm_jax.roles.standby import Standby, Term

MAX_NUMBER = 2**48
"""Larger term numbers are nonsense: they would leave no room for those after them."""


class Lease:
    """One trainer's claim to lead.

    Args:
        standby: Knows which of the others are gone.
        key: Directory key that all trainers of the swarm share.
        data_digest: Of corpus and tokenizer; trainers with other data must not lead.
        newest: How far the run has been: told, and learned from other trainers, so that
            who leads next knows it too.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        directory: Directory,
        standby: Standby,
        *,
        key: str,
        trainer: str,
        data_digest: str,
        newest: Newest,
    ):
        self._directory = directory
        self._standby = standby
        self._key = key
        self._trainer = trainer
        self._data_digest = data_digest
        self._newest = newest
        self._steps = config.steps
        self._lease_s = config.tuning.lease_s
        self._seen = 0

    async def acquire(self) -> int:
        """Waits until nobody else leads, or who does is gone.

        Numbers are remembered: that of a dead leader expires with its lease.

        Returns:
            The number of our term.

        Raises:
            ConfigError: Another trainer of this swarm has other data.
        """
        try:
            leading = await self._leading()
            while not self._standby.are_gone(leading):
                leading = await self._standby.watch(leading, self._leading_later())
        finally:
            self._standby.end()
        self._seen += 1
        return await self._claim(self._seen)

    async def _leading_later(self) -> set[Term]:
        await asyncio.sleep(self._lease_s / 5)
        return await self._leading()

    async def _leading(self) -> set[Term]:
        """Others that lead, as far as the directory says."""
        claims = await self._claims()
        self._seen = max([self._seen, *(c["number"] for c in claims.values())])
        return {
            Term(trainer, claim["number"])
            for trainer, claim in claims.items()
            if claim["leads"] and trainer != self._trainer
        }

    async def _claim(self, number: int) -> int:
        """Who is told to leave in the middle must not keep others from leading."""
        try:
            await self._store(number, leads=True)
        except asyncio.CancelledError:
            await self.release(number)
            raise
        return number

    async def keep(self, number: int) -> None:
        """Renews until cancelled, in time even while a frozen peer holds up stores."""
        async with asyncio.TaskGroup() as renewals:
            while True:
                await asyncio.sleep(self._lease_s / 5)
                renewals.create_task(self._store(number, leads=True))

    async def release(self, number: int) -> None:
        """Steps down; other trainers may lead at once."""
        await self._store(number, leads=False)

    def saw(self, number: int) -> None:
        """The next term's number will be above this one."""
        self._seen = max(self._seen, number)

    async def _store(self, number: int, *, leads: bool) -> None:
        generation, step = self._newest.position
        commit = self._newest.last_commit
        value = {
            "number": number,
            "leads": leads,
            "data_digest": self._data_digest,
            "generation": generation,
            "step": step,
            "last_commit": commit and [commit.step, commit.gradient_norm],
        }
        await self._directory.store(
            self._key, self._trainer, value, expires_in_s=self._lease_s
        )

    async def _claims(self) -> dict[str, dict[str, Any]]:
        """Live claims by trainer, an earlier one of our own among them."""
        records = await self._directory.get(self._key)
        claims = {
            trainer: record.value
            for trainer, record in records.items()
            if _is_claim(record.value)
        }
        for trainer, claim in claims.items():
            if claim["data_digest"] != self._data_digest:
                raise ConfigError(
                    f"Trainer {trainer[-6:]} of this swarm trains on other data "
                    f"(digest {claim['data_digest']}, here {self._data_digest}). Use "
                    "the same corpus files, Python version and tokenizer on all "
                    "trainers, or give this run another run_id"
                )
            self._learn(claim)
        return claims

    def _learn(self, claim: dict[str, Any]) -> None:
        if claim["step"] <= self._steps:  # anybody can write there
            self._newest.saw(claim["generation"], claim["step"])
            if commit := commit_from_header(claim):
                self._newest.knows(claim["generation"], commit)


def _is_claim(value: object) -> bool:
    return (
        isinstance(value, dict)
        and type(value.get("number")) is int
        and 0 <= value["number"] < MAX_NUMBER
        and type(value.get("leads")) is bool
        and isinstance(value.get("data_digest"), str)
        and _tells_position(value)
    )


def _tells_position(value: dict[str, Any]) -> bool:
    try:
        read(value, "step", "int")
        commit_from_header(value)
        return read(value, "generation", "int") < MAX_NUMBER
    except MalformedHeader:
        return False
