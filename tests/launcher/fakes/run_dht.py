"""A bootstrap that is ready at once and waits for SIGHUP."""

import signal

from swarm_jax.launcher import flags
from swarm_jax.metrics import write_json

parser = flags.Parser()
flags.add_experiment(parser)
flags.add_network(parser)
flags.add_process(parser)
args = parser.parse_args()
write_json(args.ready_file, {"peer_id": "boot", "initial_peers": ["/ip4/x", "/ip4/y"]})
signal.pause()
