"""What is asked of a running swarm by who takes no part in it."""

import argparse
import signal
from collections.abc import Sequence
from typing import Any

from scripts import process
from swarm_jax.config import ExperimentConfig
from swarm_jax.data.dataset import open_dataset
from swarm_jax.launcher import commands, flags
from swarm_jax.roles.evaluating import Evaluation


async def losses(
    args: argparse.Namespace, config: ExperimentConfig
) -> tuple[int, dict[str, float], dict[str, Sequence[Any]]] | signal.Signals:
    """Mean losses of the validation sets, and the sets, by name.

    Returns:
        Step, losses in nats per token, microbatches; or the signal that ended it.
    """
    process.log_to_stderr()
    data = open_dataset(config, args.cache_dir)

    def server_command(stage: int) -> str:
        experiment = flags.experiment_arguments(args)
        return commands.server_command(experiment, stage, args.initial_peers, "WORKDIR")

    async with process.joined(args, config) as network:
        evaluation = Evaluation(
            config,
            calls=network.calls,
            directory=network.directory,
            data=data,
            server_command=server_command,
        )
        found = await process.until_stopped(evaluation.run(), network.node)
    if isinstance(found, signal.Signals):
        return found
    step, by_metric = found
    metrics, sets = config.validation.metrics, data.validation_sets()
    return (
        step,
        {name: by_metric[metric] for name, metric in metrics.items()},
        {name: sets[metric] for name, metric in metrics.items()},
    )
