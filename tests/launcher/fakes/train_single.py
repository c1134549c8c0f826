"""A control run: the losses of the fake trainer, one in a thousand higher."""

import signal

from swarm_jax.launcher import flags
from swarm_jax.metrics import MetricsWriter

parser = flags.Parser()
flags.add_experiment(parser)
flags.add_start(parser)
flags.add_worker(parser, name=None)
flags.add_cache_dir(parser)
flags.add_die_with_parent(parser)
args = parser.parse_args()
writer = MetricsWriter(args.workdir / "metrics" / "trainer.jsonl")
for step in range(1, 10_000):
    writer.write(step=step, train_loss=(2.0 + 1 / step) / 1.001)
signal.pause()
