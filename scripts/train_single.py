"""Trains the whole model in one process, without a swarm: the control set.

    python -m scripts.train_single --config configs/tiny.py --workdir runs/tiny_single

Same model, initialisation, data order and optimizer as the swarm's; same metrics. With
--simulate_wire, what would travel between the swarm's stages is encoded and decoded as
there: what a lossy wire costs shows without a swarm.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from swarm_jax.errors import Diverged
from swarm_jax.launcher import environment, flags, imports
from swarm_jax.metrics import SingleRun, make_workdir, write_run_config


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.train_single", description=__doc__)
    flags.add_experiment(parser)
    parser.add_argument("--workdir", type=Path, required=True, help="run folder")
    parser.add_argument(
        "--save_parameters",
        type=Path,
        metavar="FILE",
        help="write the final parameters by layer (.npz)",
    )
    parser.add_argument(
        "--simulate_wire",
        action="store_true",
        help="cut the model as swarm.num_stages says, and encode what crosses a cut as "
        "swarm.wire and swarm.gradient_wire say",
    )
    flags.add_start(parser)
    flags.add_device(parser)
    flags.add_cache_dir(parser)
    flags.add_die_with_parent(parser)
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    write_run_config(make_workdir(args.workdir), config)
    flags.use_device(args.device)
    environment.keep_programs(args.cache_dir)
    train(args, config)


def train(args, config) -> None:
    """Trains to the end; writes metrics, summary and parameters."""
    with imports.many():
        from models import flops, functional, schedule
        from scripts import memory, wiring
        from swarm_jax.data.dataset import open_dataset
        from swarm_jax.stage import export, whole_model

    wiring.prepare_jax(config)
    data = open_dataset(config, args.cache_dir)
    functions, init_optimizer, step = wiring.make_control(
        config, simulate_wire=args.simulate_wire
    )
    params = wiring.initial_params(config, args.checkpoint_dir)
    validate = {
        metric: whole_model.make_validation(functions.loss, batches)
        for metric, batches in data.validation_sets().items()
    }
    indices = range(config.microbatches_per_step)

    def microbatches(step):
        return [data.microbatch(step, index) for index in indices]

    every = config.validation.every_steps or config.steps
    validated_steps = {*range(every, config.steps, every), config.steps}
    run = SingleRun(args.workdir, steps=config.steps)
    for done in whole_model.train(
        step,
        params,
        init_optimizer(params),
        microbatches,
        config.steps,
        wants_params=validated_steps.__contains__,
    ):
        if not math.isfinite(done.train_loss):
            raise Diverged(f"step {done.number}: the loss is {done.train_loss}")
        record = {
            "train_loss": done.train_loss,
            "gradient_norm": done.gradient_norm,
            "learning_rate": schedule.learning_rate(
                config.optimizer, done.number - 1, config.steps
            ),
            "tokens": data.step_loss_tokens(done.number - 1),
            **memory.peaks(),
        }
        if done.params is not None:
            record |= {metric: loss(done.params) for metric, loss in validate.items()}
        print(run.add_step(step=done.number, step_s=done.step_s, **record), flush=True)
    if args.save_parameters is not None:
        export.save_layers(args.save_parameters, functional.to_layers(done.params, 0))
    figures = wiring.bytes_on_wires(config) if args.simulate_wire else {}
    figures |= {"parameters": flops.parameter_count(config.model)}
    run.finish(bigram_loss=data.bigram_loss(), **figures, **memory.peaks())


if __name__ == "__main__":
    flags.run_main(main)
