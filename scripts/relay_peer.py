"""The same blocks behind ``hivemind.moe``: the baseline outside this code.

    python -m scripts.relay_peer --config configs/relay.py --serve 0 --ready_file FILE
    python -m scripts.relay_peer --config configs/relay.py --servers FILE... --json OUT

``scripts.benchmark relay`` starts both: a server for each stage, then clients. Clients
send activations through all stages and gradients back. There is no embedding, head or
loss, and the update does nothing: all of that is to the baseline's advantage.

It forks, so it never loads jax. Whatever it forks ends with it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from swarm_jax.launcher import flags
from swarm_jax.launcher.relay_cases import WIRES
from swarm_jax.metrics import write_json


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.relay_peer", description=__doc__)
    flags.add_experiment(parser)
    add = parser.add_argument
    add("--serve", type=int, metavar="STAGE", help="serve a stage")
    add("--servers", type=Path, nargs="+", metavar="FILE", help="ready files, in order")
    add("--wire", choices=WIRES, default="NONE", help="hivemind's compression")
    add("--clients", type=int, default=8, help="threads (default: %(default)s)")
    add("--seconds", type=float, default=10.0, help="of measuring (default: 10)")
    add("--json", type=Path, metavar="FILE", help="where the clients' speed goes")
    flags.add_device(parser, default="cpu")
    flags.add_process(parser)
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    from scripts import relay_peer_moe

    os.register_at_fork(after_in_child=_end_with_parent)
    if args.serve is not None:
        relay_peer_moe.serve(args, config)
    else:
        speed = relay_peer_moe.tokens_per_s(args, config)
        write_json(args.json, {"tokens_per_s": speed})


def _end_with_parent() -> None:
    flags.die_with_parent(os.getppid())


if __name__ == "__main__":
    flags.run_main(main)
