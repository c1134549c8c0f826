"""The run folder: a new run, the next part of an old one, or neither."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import ConfigError
from swarm_jax.metrics import make_workdir, read_records

BOOTSTRAP_FILE = "bootstrap.json"
CHECKPOINTS = "checkpoints"
RUN_FILES = (
    *("metrics/*.jsonl", "tensorboard/*", "logs/*.log", "compare.png"),
    *("summary.json", "config.json", BOOTSTRAP_FILE, f"{CHECKPOINTS}/*"),
    *("control/metrics/*.jsonl", "control/summary.json", "control/config.json"),
)
"""What a run writes into its folder, and all that ``--overwrite`` removes from it."""

KEPT = "Nothing was touched: choose another folder with --workdir, or replace that run "
KEPT += "with --overwrite"


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


def prepare(workdir: Path, config: ExperimentConfig, *, overwrite: bool) -> int:
    """Makes the folder ready for a run; an old run is removed only when told to.

    What a start that came to nothing left behind is no run: it has no metrics.

    Returns:
        The step that an unfinished run goes on from; 0 for a new run.

    Raises:
        ConfigError: There is a run that cannot go on.
    """
    steps = workdir / "metrics" / "trainer.jsonl"
    is_finished = (workdir / "summary.json").exists()
    is_run = is_finished or (steps.exists() and steps.stat().st_size > 0)
    stale = [workdir / BOOTSTRAP_FILE, *(workdir / "metrics").glob("swarm*.jsonl")]
    resumed = 0
    if overwrite:
        stale = [path for pattern in RUN_FILES for path in workdir.glob(pattern)]
    elif is_finished:
        raise ConfigError(f"{workdir} holds a finished run. {KEPT}")
    elif is_run:
        resumed = _resumable_step(workdir, config)
        _forget_later_steps(steps, resumed)
    for path in stale:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return resumed


def newest_checkpoint(workdir: Path) -> dict[str, Any] | None:
    """The marker of the newest complete checkpoint: step, model_fingerprint, ..."""
    markers = sorted((workdir / CHECKPOINTS).glob("step_*/complete.json"))
    return json.loads(markers[-1].read_text()) if markers else None


def _resumable_step(workdir: Path, config: ExperimentConfig) -> int:
    marker = newest_checkpoint(workdir)
    if marker is None:
        raise ConfigError(
            f"{workdir} holds a run that ended before its first checkpoint, so it "
            f"cannot go on. {KEPT}"
        )
    if marker["model_fingerprint"] != config.model_fingerprint():
        raise ConfigError(
            f"{workdir} holds a run of another experiment ({workdir}/config.json): "
            f"model, optimizer, data, steps and seed must be the same. {KEPT}"
        )
    return marker["step"]


def _forget_later_steps(path: Path, step: int) -> None:
    """They will be taken again."""
    kept = [record for record in read_records(path) if record["step"] <= step]
    path.write_text("".join(json.dumps(record) + "\n" for record in kept))
