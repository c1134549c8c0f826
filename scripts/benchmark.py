"""Measures speed on this machine: training, checkpoints, stages, wires, the data layer.

    python -m scripts.benchmark local
    python -m scripts.benchmark checkpoints --config.steps=20
    python -m scripts.benchmark codecs --repeats 50
    python -m scripts.benchmark stage --repeats 20
    python -m scripts.benchmark stage --device cuda13 --mesh model=2
    python -m scripts.benchmark data
    python -m scripts.benchmark relay --config configs/relay.py --device cuda13
    python -m scripts.benchmark wan --models base ours --rtt_ms 0 100
    python -m scripts.benchmark close --peers 2 --dilation 8
    python -m scripts.benchmark delayed --rtt_ms 0 100

local: a swarm of one peer per stage against a single process that trains the same
model, in turn. Tokens per second leave out the first steps of each run, in which
programs are compiled.

checkpoints: steps of a swarm that saves all the time against one that never does, in
turn; speed of the store for states of 100 MB and 1 GB (--state_mb), with hashing; and a
peer's move to another stage and back, by its parts.

codecs: of every wire, how long an activation (--shape) takes to encode and to decode on
the device, and what it loses. No experiment is run.

stage: how long forward, backward and update of one stage (--stage) take on the device,
with residuals kept and with forward computed again, and how large residuals are; for
each value of tuning.remat (--remat). With --profile, which kernels take the time. With
--mesh, beside one device, on several that share the stage.

data: how fast text becomes tokens, and tokens microbatches.

relay: what the way between stages costs, in several cases (--cases): the swarm against
its own programs without a network, and against hivemind.moe; docs/performance.md.

wan: how busy accelerators are, which sleep here, behind links of 500 Mb/s each way and
round trips of --rtt_ms, for the models of the SWARM paper. Bytes and protocol are real.
All is slowed down by a factor K, so that this machine is not what is measured.

close: the all-reduce that closes a step, between processes behind links of --link_mbps,
against the bound of the links; and what the device has to do then.

delayed: what swarm.delayed_updates is worth: steps of wan's swarm, whose stages have
several peers (--peers) that reduce a gradient (--parameters_mb), with it and without.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from scripts import benchmark_options, benchmarks
from swarm_jax.launcher import flags
from swarm_jax.launcher.processes import ProcessDied
from swarm_jax.launcher.signals import exit_on_signals
from swarm_jax.metrics import write_json

MEASURE = {
    "local": benchmarks.local,
    "checkpoints": benchmarks.checkpoints,
    "codecs": benchmarks.codecs,
    "stage": benchmarks.stage,
    "data": benchmarks.data,
    "relay": benchmarks.relay,
    "wan": benchmarks.wan,
    "close": benchmarks.close,
    "delayed": benchmarks.delayed,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.benchmark", description=__doc__)
    parser.add_argument("what", choices=list(MEASURE), help="what to measure")
    flags.add_experiment(parser, default="configs/benchmark_local.py")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="how often each is run (default: %(default)s)",
    )
    benchmark_options.add_all(parser)
    flags.add_device(parser, default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    args = parser.parse_args(argv)
    benchmark_options.fill_in(args)
    config = flags.experiment(args)
    benchmarks.check(args, config)
    console = Console(highlight=False)
    exit_on_signals()
    with tempfile.TemporaryDirectory(prefix="swarm_jax-benchmark-") as folder:
        try:
            report = MEASURE[args.what](args, config, Path(folder), console)
        except ProcessDied as error:
            print(error, file=sys.stderr)
            return 1
    if args.json:
        write_json(args.json, report)
    return 1 if report.get("failed") else 0


if __name__ == "__main__":
    flags.run_main(main)
