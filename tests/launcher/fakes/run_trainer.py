"""A trainer that writes metrics, then behaves as FAKE_TRAINER says."""

import os
import signal
import sys

from swarm_jax.launcher import flags
from swarm_jax.metrics import MetricsWriter, write_json

parser = flags.Parser()
flags.add_experiment(parser)
flags.add_network(parser)
flags.add_process(parser)
flags.add_worker(parser, name="trainer")
flags.add_cache_dir(parser)
args = parser.parse_args()
behaviour = os.environ.get("FAKE_TRAINER")
if behaviour == "die":
    sys.exit("The model diverged at step 3.")
if behaviour == "no_step":
    signal.pause()
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
