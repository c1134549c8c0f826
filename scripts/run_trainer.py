"""Feeds and closes the steps of a swarm, until the run is finished.

    python -m scripts.run_trainer --config configs/tiny.py \\
        --initial_peers /ip4/10.0.0.5/tcp/4001/p2p/12D3... --workdir runs/tiny

It moves tokens only, so one feeds many peers. Start several, each with a --name: one
leads, the others stand by and take over when it dies.

SIGTERM ends it with exit code 0: nothing is lost with a trainer, and one that stands by
leads at once. So does Ctrl-C, with 130 as everywhere: the run is not finished, and what
a shell was to do after it must not start.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Sequence

from models.schedule import learning_rate
from scripts import memory, signal_at
from swarm_jax.errors import Diverged
from swarm_jax.launcher import figures, flags, imports
from swarm_jax.metrics import (
    MetricsWriter,
    TensorBoardWriter,
    make_workdir,
    read_records,
    write_json,
    write_run_config,
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.run_trainer", description=__doc__)
    flags.add_experiment(parser)
    parser.add_argument(
        "--restart_if_lost",
        action="store_true",
        help="when a stage's state is gone with all its peers, go back to the newest "
        "checkpoint that all stages have, or to step 0 "
        "(default: wait for one of them to come back; type restart to go on)",
    )
    signal_at.add_argument(parser)
    flags.add_network(parser)
    flags.add_process(parser)
    flags.add_worker(parser, name="trainer")
    flags.add_tensorboard(parser)
    flags.add_cache_dir(parser)
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    write_run_config(make_workdir(args.workdir), config)
    flags.use_device("cpu")
    try:
        return asyncio.run(train(args, config))
    except Diverged as error:
        print(error, file=sys.stderr)
        return 1


async def train(args, config) -> int:
    """Returns 0 when the run is finished, else what the signal asks for."""
    with imports.many():
        from scripts import process, stages
        from swarm_jax.data.dataset import open_dataset
        from swarm_jax.roles.trainer import Trainer

    process.log_to_stderr()
    started_s = time.monotonic()
    data = open_dataset(config, args.cache_dir)
    metrics = args.workdir / "metrics"
    steps_file = metrics / f"{args.name}.jsonl"
    steps = MetricsWriter(steps_file, memory.peak_rss)
    swarm_file = "swarm.jsonl" if args.name == "trainer" else f"swarm-{args.name}.jsonl"
    if args.tensorboard:
        steps = TensorBoardWriter(steps, args.workdir / "tensorboard")
    async with process.joined(args, config) as network:
        process.announce_ready(args, network.node)
        another = process.trainer_command(args, network.node)
        print(f"Another trainer, to stand by: {another}", flush=True)
        trainer = Trainer(
            config,
            calls=signal_at.watched(network.calls, args.signal_at),
            directory=network.directory,
            data=data,
            steps=steps,
            swarm=MetricsWriter(metrics / swarm_file),
            learning_rate=lambda step: learning_rate(
                config.optimizer, step, config.steps
            ),
            server_command=lambda stage: process.server_command(
                args, network.node, stage
            ),
            restart_if_lost=process.restart_permission(args.restart_if_lost),
            stage_work=stages.stage_work(config),
        )
        totals = await process.until_stopped(trainer.run(), network.node)
    if isinstance(totals, signal.Signals):
        return exit_code(totals)
    # Those of a part of the run that an earlier process has trained are there, too.
    records = {record["step"]: record for record in read_records(steps_file)}
    summary = totals.summary() | figures.step_figures(records)
    summary |= {
        "bigram_loss": data.bigram_loss(),
        "data_digest": data.digest,
        "wall_s": time.monotonic() - started_s,
    }
    if totals.steps:  # not of a trainer that stood by until others had finished
        write_json(args.workdir / "summary.json", summary)
    return 0


def exit_code(number: signal.Signals) -> int:
    return 0 if number == signal.SIGTERM else 128 + number


if __name__ == "__main__":
    flags.run_main(main)
