"""JSON-lines metrics: one line per record, every name with its unit.

A run folder holds::

    config.json            the experiment, its fingerprints, commit, library versions
    metrics/trainer.jsonl  one line per step: step, train_loss, tokens_per_s, ...
    metrics/swarm.jsonl    one line per second: the swarm as the trainer sees it
    metrics/PEER.jsonl     one line per step of each stage server
    summary.json           written once, at the end

The same schema serves the swarm, the single-process control and PyTorch.
"""

import dataclasses
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from swarm_jax.errors import ConfigError

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain"),
    *("tokenizers", "hivemind", "torch"),
)
"""Whose versions a run records, where they are installed."""


VALIDATION_LOSS = "validation_loss"
"""Metric of the held-out split; of another set, with "/NAME" behind it."""


def is_validation(name: str) -> bool:
    """Whether a metric is the loss on a validation set."""
    return name.split("/")[0] == VALIDATION_LOSS


def validation_text(record: Mapping[str, Any]) -> str:
    """For people: ``validation loss 1.7730 (wiki 2.1012)``; empty if none is known."""
    losses = {
        name.partition("/")[2]: f"{loss:.4f}"
        for name, loss in record.items()
        if is_validation(name) and loss is not None
    }
    if not losses:
        return ""
    text = f"validation loss {losses.pop('', 'unknown')}"
    sets = ", ".join(f"{name} {loss}" for name, loss in losses.items())
    return f"{text} ({sets})" if sets else text


class MetricsWriter:
    """Appends records to one JSON-lines file; every line is flushed as it is written.

    Args:
        path: File to append to; its folder is created.
        also: Called for each record; what it gives stands in the record too.
    """

    def __init__(self, path: Path, also: Callable[[], dict[str, Any]] = dict):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a")
        self._also = also

    def write(self, **record: Any) -> None:
        self._file.write(json.dumps(record | self._also()) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """Writes records through another writer, and their numbers as scalars too.

    Args:
        writer: Gets every record as it is.
        folder: For TensorBoard's event files.
    """

    def __init__(self, writer: MetricsWriter, folder: Path):
        # Here: it takes half a second, and few runs ask for it.
        from tensorboardX import SummaryWriter

        self._writer = writer
        self._events = SummaryWriter(str(folder))

    def write(self, *, step: int, **record: Any) -> None:
        self._writer.write(step=step, **record)
        for name, value in record.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        self._events.close()
        self._writer.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Complete lines of a metrics file; a line that is still being written is left."""
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def write_run_config(workdir: Path, config: Any) -> None:
    """Writes ``config.json``: what is run, by which code, with which versions.

    Args:
        config: The ``ExperimentConfig``.
    """
    versions = {
        distribution.name.lower(): distribution.version
        for distribution in metadata.distributions()
        if distribution.name.lower() in PACKAGES
    }
    record = {
        "experiment": dataclasses.asdict(config),
        "model_fingerprint": config.model_fingerprint(),
        "swarm_fingerprint": config.swarm_fingerprint(),
        "code": code_version(Path(__file__).parent),
        "versions": {"python": platform.python_version(), **versions},
    }
    write_json(workdir / "config.json", record)


def code_version(folder: Path) -> dict[str, Any] | None:
    """The git commit of the code in a folder, and whether tracked files differ from it.

    Returns:
        ``{"commit": ..., "modified": ...}``; None where git knows nothing of it, as in
        an unpacked archive.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        modified = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "modified": modified}


class SingleRun:
    """Metrics and summary of a run in one process, in the swarm's schema.

    Steps of an earlier run in the same folder are removed.

    Args:
        workdir: Run folder.
        steps: Of the whole run.
    """

    def __init__(self, workdir: Path, *, steps: int):
        self._workdir = workdir
        self._steps = steps
        self._timed: list[tuple[int, float]] = []
        self._last: dict[str, Any] = {}
        self._begun_s = time.perf_counter()
        path = workdir / "metrics" / "trainer.jsonl"
        path.unlink(missing_ok=True)
        self._writer = MetricsWriter(path)

    def add_step(self, *, step: int, step_s: float, tokens: int, **record: Any) -> str:
        """Writes a step's line.

        Args:
            step: Counted from 1.
            step_s: Its wall time.
            tokens: Its loss tokens.
            **record: train_loss, gradient_norm, learning_rate; validation losses, if
                they were measured.

        Returns:
            The line for people.
        """
        tokens_per_s = tokens / step_s
        self._timed.append((tokens, step_s))
        self._last |= record
        self._writer.write(
            step=step,
            tokens=tokens,
            step_s=step_s,
            tokens_per_s=tokens_per_s,
            **record,
        )
        parts = [
            f"step {step}/{self._steps}",
            f"loss {record['train_loss']:.4f}",
            validation_text(record),
            f"{tokens_per_s:,.0f} tokens/s",
        ]
        return "  ".join(filter(None, parts))

    def finish(self, **more: Any) -> dict[str, Any]:
        """Writes ``summary.json``; the speed leaves out the first step, which compiles.

        Args:
            **more: What else to say: bigram_loss, parameters.
        """
        self._writer.close()
        tokens, timed_s = zip(*(self._timed[1:] or self._timed), strict=True)
        validation = {n: loss for n, loss in self._last.items() if is_validation(n)}
        summary = {
            "steps": len(self._timed),
            "final_train_loss": self._last["train_loss"],
            VALIDATION_LOSS: None,
            **validation,
            "tokens_per_s": sum(tokens) / sum(timed_s),
            "wall_s": time.perf_counter() - self._begun_s,
            **more,
        }
        write_json(self._workdir / "summary.json", summary)
        return summary


def make_workdir(path: Path) -> Path:
    """Creates a run folder and proves that it can be written to.

    Raises:
        ConfigError: It cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"Cannot write to the run folder {path}: {error.strerror}. Choose another "
            "with --workdir"
        ) from error
    return path
