"""Trains the same model with an independent PyTorch implementation, without a swarm.

    python -m scripts.train_pytorch --config configs/tiny.py --workdir runs/tiny_pytorch
    python -m scripts.train_pytorch --config configs/tiny.py --parity --steps 50

Same initial parameters (converted from JAX's), data order, optimizer and metrics. The
main memory that it records is that of the process, in which jax is loaded too.
With --parity it trains both on the CPU, in the parameters' dtype, on the same batches,
and says how far apart they come.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

from scripts.batches import joined, step_batch
from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import ConfigError, Diverged
from swarm_jax.launcher import flags
from swarm_jax.metrics import SingleRun, make_workdir, write_json, write_run_config


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.train_pytorch", description=__doc__)
    flags.add_experiment(parser)
    add = parser.add_argument
    add("--workdir", type=Path, help="run folder (default: runs/RUN_ID_pytorch)")
    add("--parity", action="store_true", help="compare with JAX instead")
    add("--steps", type=int, default=50, help="steps to compare (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="where the comparison goes")
    flags.add_start(parser)
    flags.add_device(parser)
    flags.add_cache_dir(parser)
    flags.add_die_with_parent(parser)
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    flags.use_device("cpu")
    (compare if args.parity else train)(args, config)


def train(args: argparse.Namespace, config: ExperimentConfig) -> None:
    """Trains to the end; writes metrics and summary."""
    from models import flops, functional
    from scripts.memory import peak_rss

    workdir = make_workdir(args.workdir or Path(f"runs/{config.run_id}_pytorch"))
    write_run_config(workdir, config)
    data, trainer, _, params = set_up(args, config, args.device)
    trainer.load(functional.to_layers(params, 0))
    del params
    validation = {m: joined(batches) for m, batches in data.validation_sets().items()}
    run = SingleRun(workdir, steps=config.steps)
    for step in range(1, config.steps + 1):
        result = trainer.step(step_batch(config, data, step - 1))
        if not math.isfinite(result.train_loss):
            raise Diverged(f"step {step}: the loss is {result.train_loss}")
        record = dataclasses.asdict(result) | peak_rss() | trainer.peak_device()
        every = config.validation.every_steps
        if step == config.steps or (every and step % every == 0):
            record |= {m: trainer.mean_loss(batch) for m, batch in validation.items()}
        record["tokens"] = data.step_loss_tokens(step - 1)
        print(run.add_step(**record), flush=True)
    size = flops.parameter_count(config.model)
    memory = peak_rss() | trainer.peak_device()
    run.finish(bigram_loss=data.bigram_loss(), parameters=size, **memory)


def compare(args: argparse.Namespace, config: ExperimentConfig) -> None:
    """Trains both and reports the differences."""
    if args.steps < 1:
        raise ConfigError(f"--steps {args.steps}: use 1 or more")
    from models.torch_parity import measure_parity

    config.model.compute_dtype = config.model.parameter_dtype
    data, trainer, control, params = set_up(args, config, "cpu")
    batches = (step_batch(config, data, step) for step in range(args.steps))
    size = config.swarm.microbatch_size
    parity = measure_parity(*control, params, trainer, batches, size)
    print(parity.describe())
    if args.json is not None:
        write_json(args.json, dataclasses.asdict(parity))


def set_up(args: argparse.Namespace, config: ExperimentConfig, device: str | None):
    """Returns data, PyTorch's trainer, JAX's control and its initial parameters."""
    if config.swarm.delayed_updates:
        way_out = "compare with python -m scripts.train_single, which has them"
        raise ConfigError(f"swarm.delayed_updates: PyTorch has none; {way_out}")
    device = torch_device(device)
    from models.torch_training import TorchTrainer
    from scripts import wiring
    from swarm_jax.data.dataset import open_dataset

    wiring.prepare_jax(config)
    data = open_dataset(config, args.cache_dir)
    control = wiring.make_control(config)
    trainer = TorchTrainer(config.model, config.optimizer, config.steps, device)
    return data, trainer, control, wiring.initial_params(config, args.checkpoint_dir)


def torch_device(name: str | None) -> str:
    """PyTorch's name of a device; None: the best there is."""
    # Its threads spin while they wait for one another: on a machine that does anything
    # else besides, that was two to five times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    has_gpu = torch.cuda.is_available()
    if name not in (None, "cpu") and not has_gpu:
        raise ConfigError(f"--device {name}: this PyTorch sees no GPU. Use cpu")
    return "cuda" if has_gpu and name != "cpu" else "cpu"


if __name__ == "__main__":
    flags.run_main(main)
