"""Mean loss and perplexity of a checkpoint on held-out text, in one process.

    python -m scripts.evaluate --checkpoint runs/tiny --config configs/tiny.py

The experiment says which text: another corpus than the one that was trained on is
--config.data.corpus=files:FOLDER, more of it --config.validation.sequences=512.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from swarm_jax.launcher import flags, imports
from swarm_jax.metrics import write_json


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.evaluate", description=__doc__)
    flags.add_experiment(parser)
    flags.add_checkpoint(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    flags.add_device(parser)
    flags.add_cache_dir(parser)
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    flags.use_device(args.device)
    with imports.many():
        from scripts import saved_model, wiring
    wiring.prepare_jax(config)
    saved = saved_model.load(args.checkpoint, args.step)
    saved_model.check_agrees(saved, config)
    figures = evaluate(saved, config, args.cache_dir)
    Console(highlight=False).print(table(saved.step, figures))
    if args.json is not None:
        record = {"checkpoint": str(args.checkpoint), "step": saved.step}
        write_json(args.json, record | {"sets": figures})


def evaluate(saved, config, cache_dir: Path) -> dict[str, dict[str, Any]]:
    """Loss (nats per token), perplexity and loss tokens of each validation set."""
    from models import functional
    from swarm_jax.data.dataset import open_dataset
    from swarm_jax.stage.whole_model import make_validation

    data = open_dataset(config, cache_dir)
    loss = functional.make_stage(config.model, 0, config.model.num_layers).loss
    params = saved.params(config.model)
    figures = {}
    sets = data.validation_sets()
    for name, metric in config.validation.metrics.items():
        microbatches = sets[metric]
        mean_loss = make_validation(loss, microbatches)(params)
        figures[name] = {
            "loss": mean_loss,
            "perplexity": math.exp(mean_loss),
            "tokens": sum(microbatch.loss_tokens for microbatch in microbatches),
        }
    return figures


def table(step: int, figures: dict[str, dict[str, Any]]) -> Table:
    shown = Table("set", "loss (nats/token)", "perplexity", "tokens")
    shown.title = f"step {step}"
    for name, row in figures.items():
        loss, perplexity = f"{row['loss']:.4f}", f"{row['perplexity']:.3f}"
        shown.add_row(name, loss, perplexity, f"{row['tokens']:,}")
    return shown


if __name__ == "__main__":
    flags.run_main(main)
