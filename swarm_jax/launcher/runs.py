"""Reads the metrics that a finished or running run has written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swarm_jax.errors import ConfigError
from swarm_jax.metrics import read_records

COMPILING_STEPS = 3
"""First steps that are left out of speeds: programs are compiled in them, connections
are made, and routers have no measurements yet."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Most memory that processes of a run held, each at its own moment.

    Attributes:
        processes: Those that recorded it: stage servers and trainers, or the one.
        peak_rss_bytes: Main memory, of the largest. What processes share, such as the
            code of libraries, is part of it.
        total_peak_rss_bytes: The sum over all of them.
        peak_device_bytes, total_peak_device_bytes: Of accelerators; None without one.
    """

    processes: int
    peak_rss_bytes: int
    total_peak_rss_bytes: int
    peak_device_bytes: int | None
    total_peak_device_bytes: int | None


@dataclass(frozen=True, slots=True)
class Run:
    """What one run folder says.

    Attributes:
        name: The folder, as it was given.
        losses: Training loss by step, nats per token.
        validation_losses: The same for the steps at which it was measured.
        tokens: Loss tokens trained on from the start to the end of a step, by step.
        tokens_per_s: Speed without the first ``COMPILING_STEPS`` steps.
        memory: None if it was not recorded.
        experiment: Fingerprint of model, optimizer, data and seed; None: not recorded.
    """

    name: str
    losses: dict[int, float]
    validation_losses: dict[int, float]
    tokens: dict[int, int]
    tokens_per_s: float
    memory: Memory | None
    experiment: str | None

    def loss_after(self, tokens: float) -> float:
        """Training loss of the step that ended there; between two, on their line."""
        ends = [self.tokens[step] for step in self.losses]
        return float(np.interp(tokens, ends, list(self.losses.values())))


def load_run(folder: Path) -> Run:
    """Reads ``metrics/`` of a run folder. Skipped steps are left out.

    Raises:
        ConfigError: It is no run folder, or nothing has been trained in it yet.
    """
    path = folder / "metrics" / "trainer.jsonl"
    if not path.is_file():
        raise ConfigError(
            f"{folder} is no run folder (there is no {path}). Give what was the "
            "--workdir of a run"
        )
    # Of a step that a run went back behind, the last record counts.
    by_step = {record["step"]: record for record in read_records(path)}
    steps = dict(sorted(by_step.items()))
    records = [record for record in steps.values() if not record.get("skipped")]
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
        tokens=trained_tokens(steps),
        tokens_per_s=steady_tokens_per_s(records),
        memory=recorded_memory(folder),
        experiment=_experiment(folder),
    )


def trained_tokens(records: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
    """Loss tokens from the start to the end of each recorded step.

    Args:
        records: By step, ascending. One that is missing went with a trainer that died
            after the step was taken: it counts as much as the next.
    """
    total, before, ends = 0, 0, {}
    for step, record in records.items():
        total += record.get("tokens", 0) * (step - before)
        before, ends[step] = step, total
    return ends


def steady_tokens_per_s(records: Sequence[dict[str, Any]]) -> float:
    """Tokens over seconds of all steps but the first ``COMPILING_STEPS``.

    Of a run that is shorter, the last step.
    """
    steady = records[COMPILING_STEPS:] or records[-1:]
    tokens = sum(record["tokens"] for record in steady)
    return tokens / sum(record["step_s"] for record in steady)


def recorded_memory(folder: Path) -> Memory | None:
    """The largest that each process has recorded in its own file of metrics."""
    rss, device = [], []
    for path in sorted((folder / "metrics").glob("*.jsonl")):
        records = list(read_records(path))
        for name, found in (("peak_rss_bytes", rss), ("peak_device_bytes", device)):
            values = [record[name] for record in records if name in record]
            found.extend([max(values)] if values else [])
    if not rss:
        return None
    total = sum(device) if device else None
    return Memory(len(rss), max(rss), sum(rss), max(device, default=None), total)


def start_to_ready_s(folder: Path) -> dict[str, float]:
    """Of each stage server that recorded it, by the name of its file of metrics."""
    found = {}
    for path in sorted((folder / "metrics").glob("*.jsonl")):
        for record in read_records(path):
            if "start_to_ready_s" in record:
                found[path.stem] = record["start_to_ready_s"]
                break
    return found


def _experiment(folder: Path) -> str | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    return json.loads(path.read_text())["model_fingerprint"]
