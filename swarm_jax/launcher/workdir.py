"""The run folder: a new run, the next part of an old one, or neither."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import ConfigError
from swarm_jax.metrics import make_workdir, read_records

BOOTSTRAP_FILE = "bootstrap.json"
CHECKPOINTS = "checkpoints"
STEPS = "metrics/trainer*.jsonl"
START = f"{CHECKPOINTS}/step_{0:08d}"
"""Imported parameters that a run starts with: nothing of what it wrote itself."""
RUN_FILES = (
    *("metrics/*.jsonl", "tensorboard/*", "logs/*.log", "compare.png"),
    *("summary.json", "config.json", BOOTSTRAP_FILE, f"{CHECKPOINTS}/*"),
    *("control/metrics/*.jsonl", "control/summary.json", "control/config.json"),
)
"""What a run writes into its folder, and all that ``--overwrite`` removes from it."""

KEPT = "Nothing was touched: choose another folder with --workdir, or replace that run "
KEPT += "with --overwrite"


class Checkpoint(NamedTuple):
    """What the launcher needs to know of one."""

    step: int
    model_fingerprint: str


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the run folder; the lock ends with the process, however that ends.

    Raises:
        ConfigError: A run is going on in it, or it cannot be written to.
    """
    with (make_workdir(workdir) / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{workdir} is in use: a run is going on there. Stop it, or choose "
                "another folder with --workdir"
            ) from error
        yield


def prepare(
    workdir: Path, config: ExperimentConfig, *, overwrite: bool, may_resume: bool
) -> int:
    """Makes the folder ready for a run; an old run is removed only when told to.

    What a start that came to nothing left behind is no run: it has neither metrics nor
    a checkpoint.

    Args:
        may_resume: Whether an unfinished run may go on.

    Returns:
        The step that an unfinished run goes on from; 0 for a new run.

    Raises:
        ConfigError: There is a run that cannot go on.
    """
    steps = [path for path in workdir.glob(STEPS) if path.stat().st_size > 0]
    is_finished = (workdir / "summary.json").exists()
    checkpoint = newest_checkpoint(workdir)
    stale = [workdir / BOOTSTRAP_FILE, *(workdir / "metrics").glob("swarm*.jsonl")]
    resumed = 0
    if overwrite:
        kept = [] if config.initial_weights is None else [workdir / START]
        found = [path for pattern in RUN_FILES for path in workdir.glob(pattern)]
        stale = [path for path in found if path not in kept]
    elif is_finished:
        raise ConfigError(f"{workdir} holds a finished run. {KEPT}")
    elif steps or checkpoint:
        if not may_resume and (steps or checkpoint.step):
            raise ConfigError(f"{workdir} holds an unfinished run. {KEPT}")
        resumed = _resumable_step(workdir, checkpoint, config)
        for path in steps:
            _forget_later_steps(path, resumed)
    for path in stale:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return resumed


def newest_checkpoint(workdir: Path) -> Checkpoint | None:
    """The newest complete one; one whose marker is damaged is passed over."""
    markers = (workdir / CHECKPOINTS).glob("step_*/complete.json")
    for path in sorted(markers, reverse=True):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            marker = json.loads(path.read_text())
            return Checkpoint(marker["step"], marker["model_fingerprint"])
    return None


def how_to_go_on(workdir: Path) -> str:
    """For whom has just stopped a run."""
    checkpoint = newest_checkpoint(workdir)
    if checkpoint is None:
        return "Stopped before the first checkpoint"
    return f"Stopped. The same command goes on from step {checkpoint.step}"


def _resumable_step(
    workdir: Path, checkpoint: Checkpoint | None, config: ExperimentConfig
) -> int:
    if checkpoint is None:
        raise ConfigError(
            f"{workdir} holds a run that ended before its first checkpoint, so it "
            f"cannot go on. {KEPT}"
        )
    if checkpoint.model_fingerprint != config.model_fingerprint():
        raise ConfigError(
            f"{workdir} holds a run of another experiment ({workdir}/config.json): "
            "model, optimizer, data, steps, initial_weights and seed must be the same. "
            f"{KEPT}"
        )
    return checkpoint.step


def _forget_later_steps(path: Path, step: int) -> None:
    """They will be taken again."""
    kept = [record for record in read_records(path) if record["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
    partial.replace(path)
