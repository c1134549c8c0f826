"""A trainer that writes metrics, then behaves as FAKE_TRAINER says."""

import fcntl
import os
import signal
import sys
import time

from swarm_jax.launcher import flags
from swarm_jax.metrics import MetricsWriter, read_records, write_json

parser = flags.Parser()
flags.add_experiment(parser)
flags.add_network(parser)
flags.add_process(parser)
flags.add_worker(parser, name="trainer")
flags.add_cache_dir(parser)
parser.add_argument("--restart_if_lost", action="store_true")
args = parser.parse_args()


def lead_in_turns() -> None:
    """Sees all servers that ever were ready; takes steps while it holds a lock."""
    metrics = args.workdir / "metrics"
    name = "swarm.jsonl" if args.name == "trainer" else f"swarm-{args.name}.jsonl"
    swarm, steps = MetricsWriter(metrics / name), None
    step, leads = 0, False
    lock = (args.workdir / "lease").open("w")
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leads = True
        except BlockingIOError:
            pass
        if leads and steps is None:
            past = [
                r["step"] for f in metrics.glob("trainer*") for r in read_records(f)
            ]
            step = max(past, default=0)
            steps = MetricsWriter(metrics / f"{args.name}.jsonl")
        ready = sorted(path.stem for path in args.workdir.glob("stage*.ready"))
        stages = [
            {
                "stage": stage,
                "peers": [
                    {"name": n, "state": "ONLINE", "step": step, "queue": 0}
                    | {"tokens_per_s": 1.0}
                    for n in ready
                    if n.startswith(f"stage{stage}-")
                ],
            }
            for stage in (0, 1)
        ]
        step += leads
        if leads:
            steps.write(
                **{"step": step, "train_loss": 2.0 + 1 / step, "tokens": 100},
                time_s=time.monotonic(),
                **{"tokens_per_s": 1234.0, "microbatches_expected": 8},
                **{"microbatches_counted_once": 8, "microbatches_lost": 0},
                microbatches_counted_twice=0,
            )
        swarm.write(
            **{"step": step, "answered": 0, "microbatches_per_step": 8},
            **{"stages": stages, "waiting": None},
        )
        signal.sigtimedwait([signal.SIGUSR1], 0.05)


behaviour = os.environ.get("FAKE_TRAINER")
if behaviour == "may_go_back":
    assert args.restart_if_lost
if behaviour == "die":
    sys.exit("The model diverged at step 3.")
if behaviour == "no_step":
    signal.pause()
if behaviour == "lead_in_turns":
    lead_in_turns()
MetricsWriter(args.workdir / "metrics" / "trainer.jsonl").write(
    step=1,
    train_loss=2.5,
    tokens_per_s=1234.0,
    microbatches_expected=8,
    microbatches_counted_once=8,
)
(args.workdir / f"{args.name}.ready").touch()
if behaviour == "stay":
    signal.pause()
if behaviour == "wait_for_notice":
    MetricsWriter(args.workdir / "metrics" / "swarm.jsonl").write(
        step=1,
        answered=3,
        microbatches_per_step=8,
        stages=[{"stage": 0, "peers": []}],
        waiting="Stage 0 has no live peer. Start one",
    )
    while not (args.workdir / "noticed").exists():
        signal.sigtimedwait([signal.SIGUSR1], 0.05)
if behaviour != "no_summary":
    summary = {"steps": 1, "validation_loss": 1.5, "bigram_loss": 2.5, "wall_s": 0.0}
    write_json(args.workdir / "summary.json", summary)
