"""Plain training of the same experiment for as many steps as a run took."""

import time
from collections.abc import Sequence
from pathlib import Path

from swarm_jax.launcher.environment import peer_environments
from swarm_jax.launcher.processes import ProcessDied, Processes, module_command
from swarm_jax.launcher.progress import Follower
from swarm_jax.launcher.workdir import CHECKPOINTS

POLL_S = 0.2


def control_losses(
    experiment: Sequence[str],
    steps: int,
    workdir: Path,
    device: str,
    cache_dir: Path,
) -> dict[int, float]:
    """Training loss by step, nats per token, of one process without a swarm.

    The process is ended after ``steps``, whatever the experiment says: the schedule of
    its learning rate depends on the experiment's steps, so they stay what they were.

    Args:
        experiment: ``["--config", FILE, ...]``, the very one of the run.
        workdir: Of the run; the control goes to ``control`` in it.

    Raises:
        ProcessDied: It failed. The message quotes its log.
    """
    folder = workdir / "control"
    arguments = [*experiment, "--workdir", str(folder), "--device", device]
    arguments += ["--cache_dir", str(cache_dir)]
    arguments += ["--checkpoint_dir", str(workdir / CHECKPOINTS)]
    command = module_command("scripts.train_single", arguments)
    follower = Follower(folder / "metrics" / "trainer.jsonl")
    losses: dict[int, float] = {}
    with Processes(workdir / "logs") as processes:
        environment = peer_environments(device, 1, cache_dir)[0]
        child = processes.start("control", command, environment)
        while True:
            ended = child.exit_code is not None
            for record in follower.read():
                losses[record["step"]] = record["train_loss"]
            if steps in losses:
                return losses
            if ended:
                raise ProcessDied(child.obituary())
            time.sleep(POLL_S)
