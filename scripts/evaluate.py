"""Mean loss and perplexity on held-out text: of a checkpoint, or of a swarm.

    python -m scripts.evaluate --checkpoint runs/tiny --config configs/tiny.py
    python -m scripts.evaluate --initial_peers $PEERS --config configs/tiny.py

A checkpoint is computed in this process. A swarm computes with the parameters that it
has, whether or not it trains meanwhile: nothing in it changes. So a model that is too
large for one process is evaluated where it is, or with servers that are started from
its checkpoint.

The experiment says which text: another corpus than the one that was trained on is
--config.data.corpus=files:FOLDER, more of it --config.validation.sequences=512. A
swarm has one corpus; further texts are --config.validation.sets="['NAME=CORPUS']".
"""

import argparse
import asyncio
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags, imports
from swarm_jax.metrics import write_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.evaluate", description=__doc__)
    flags.add_experiment(parser)
    flags.add_checkpoint(parser, required=False)
    flags.add_network(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    flags.add_device(parser)
    flags.add_cache_dir(parser)
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    if bool(args.checkpoint) == bool(args.initial_peers):
        raise ConfigError("give either --checkpoint or --initial_peers: what is asked?")
    if args.checkpoint:
        source, (step, sets) = str(args.checkpoint), of_checkpoint(args, config)
    else:
        if args.step is not None:
            raise ConfigError("--step is of a checkpoint: a swarm has one of its own")
        flags.use_device("cpu")
        with imports.many():
            from scripts import guest
        found = asyncio.run(guest.losses(args, config))
        if isinstance(found, signal.Signals):
            return 128 + found
        source, (step, losses, batches) = "a swarm", found
        sets = {name: figures(losses[name], batches[name]) for name in losses}
    Console(highlight=False).print(table(step, sets))
    if args.json is not None:
        record = {"checkpoint": source, "step": step}
        write_json(args.json, record | {"sets": sets})
    return 0


def of_checkpoint(
    args: argparse.Namespace, config: ExperimentConfig
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Step and figures of a checkpoint, computed here."""
    flags.use_device(args.device)
    with imports.many():
        from scripts import saved_model, wiring
    wiring.prepare_jax(config)
    saved = saved_model.load(args.checkpoint, args.step)
    saved_model.check_agrees(saved, config)
    return saved.step, evaluate(saved, config, args.cache_dir)


def evaluate(saved, config, cache_dir: Path) -> dict[str, dict[str, Any]]:
    """Loss (nats per token), perplexity and loss tokens of each validation set."""
    from models import functional
    from swarm_jax.data.dataset import open_dataset
    from swarm_jax.stage.whole_model import make_validation

    data = open_dataset(config, cache_dir)
    loss = functional.make_stage(config.model, 0, config.model.num_layers).loss
    params = saved.params(config.model)
    sets = data.validation_sets()
    return {
        name: figures(make_validation(loss, sets[metric])(params), sets[metric])
        for name, metric in config.validation.metrics.items()
    }


def figures(mean_loss: float, microbatches: Sequence[Any]) -> dict[str, Any]:
    return {
        "loss": mean_loss,
        "perplexity": math.exp(mean_loss),
        "tokens": sum(microbatch.loss_tokens for microbatch in microbatches),
    }


def table(step: int, sets: dict[str, dict[str, Any]]) -> Table:
    shown = Table("set", "loss (nats/token)", "perplexity", "tokens")
    shown.title = f"step {step}"
    for name, row in sets.items():
        loss, perplexity = f"{row['loss']:.4f}", f"{row['perplexity']:.3f}"
        shown.add_row(name, loss, perplexity, f"{row['tokens']:,}")
    return shown


if __name__ == "__main__":
    flags.run_main(main)
