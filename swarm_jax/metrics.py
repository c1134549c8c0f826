"""JSON-lines metrics: one line per record, every name with its unit.

A run folder holds::

    config.json            the experiment, its fingerprints and the library versions
    metrics/trainer.jsonl  one line per step: step, train_loss, tokens_per_s, ...
    metrics/swarm.jsonl    one line per second: the swarm as the trainer sees it
    metrics/PEER.jsonl     one line per step of each stage server
    summary.json           written once, at the end

The same schema serves the swarm, the single-process control and PyTorch.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from swarm_jax.errors import ConfigError


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
