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
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from swarm_jax.errors import ConfigError

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain"),
    *("tokenizers", "hivemind", "torch"),
)
"""Whose versions a run records, where they are installed."""


class MetricsWriter:
    """Appends records to one JSON-lines file; every line is flushed as it is written.

    Args:
        path: File to append to; its folder is created.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a")

    def write(self, **record: Any) -> None:
        self._file.write(json.dumps(record) + "\n")
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
        tokens: Loss tokens of a step.
    """

    def __init__(self, workdir: Path, *, steps: int, tokens: int):
        self._workdir = workdir
        self._steps = steps
        self._tokens = tokens
        self._timed_s: list[float] = []
        self._last: dict[str, Any] = {}
        self._begun_s = time.perf_counter()
        path = workdir / "metrics" / "trainer.jsonl"
        path.unlink(missing_ok=True)
        self._writer = MetricsWriter(path)

    def add_step(self, *, step: int, step_s: float, **record: Any) -> str:
        """Writes a step's line.

        Args:
            step: Counted from 1.
            step_s: Its wall time.
            **record: train_loss, gradient_norm, learning_rate; validation_loss, if
                it was measured.

        Returns:
            The line for people.
        """
        tokens_per_s = self._tokens / step_s
        self._timed_s.append(step_s)
        self._last |= record
        self._writer.write(
            step=step,
            tokens=self._tokens,
            step_s=step_s,
            tokens_per_s=tokens_per_s,
            **record,
        )
        text = f"step {step}/{self._steps}  loss {record['train_loss']:.4f}"
        if "validation_loss" in record:
            text += f"  validation loss {record['validation_loss']:.4f}"
        return f"{text}  {tokens_per_s:,.0f} tokens/s"

    def finish(self, **more: Any) -> dict[str, Any]:
        """Writes ``summary.json``; the speed leaves out the first step, which compiles.

        Args:
            **more: What else to say: bigram_loss, parameters.
        """
        self._writer.close()
        timed_s = self._timed_s[1:] or self._timed_s
        summary = {
            "steps": len(self._timed_s),
            "final_train_loss": self._last["train_loss"],
            "validation_loss": self._last.get("validation_loss"),
            "tokens_per_s": self._tokens * len(timed_s) / sum(timed_s),
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
