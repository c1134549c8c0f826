"""Reads the metrics that a finished or running run has written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarm_jax.errors import ConfigError
from swarm_jax.metrics import read_records

COMPILING_STEPS = 3
"""First steps that are left out of speeds: programs are compiled in them, connections
are made, and routers have no measurements yet."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run folder says.

    Attributes:
        name: The folder, as it was given.
        losses: Training loss by step, nats per token.
        validation_losses: The same for the steps at which it was measured.
        tokens_per_s: Speed without the first ``COMPILING_STEPS`` steps.
    """

    name: str
    losses: dict[int, float]
    validation_losses: dict[int, float]
    tokens_per_s: float


def load_run(folder: Path) -> Run:
    """Reads ``metrics/trainer.jsonl`` of a run folder. Skipped steps are left out.

    Raises:
        ConfigError: It is no run folder, or nothing has been trained in it yet.
    """
    path = folder / "metrics" / "trainer.jsonl"
    if not path.is_file():
        raise ConfigError(
            f"{folder} is no run folder (there is no {path}). Give what was the "
            "--workdir of a run"
        )
    records = [record for record in read_records(path) if not record.get("skipped")]
    if not records:
        raise ConfigError(f"{path} holds no step yet: wait until one is done")
    return Run(
        name=str(folder),
        losses={record["step"]: record["train_loss"] for record in records},
        validation_losses={
            record["step"]: record["validation_loss"]
            for record in records
            if record.get("validation_loss") is not None
        },
        tokens_per_s=steady_tokens_per_s(records),
    )


def steady_tokens_per_s(records: Sequence[dict[str, Any]]) -> float:
    """Tokens over seconds of all steps but the first ``COMPILING_STEPS``.

    Of a run that is shorter, the last step.
    """
    steady = records[COMPILING_STEPS:] or records[-1:]
    tokens = sum(record["tokens"] for record in steady)
    return tokens / sum(record["step_s"] for record in steady)
