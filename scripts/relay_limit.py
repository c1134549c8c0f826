"""What the stages of an experiment would do without a network: one process, chained.

    python -m scripts.relay_limit --config configs/relay.py --json limit.json

The same programs as the stage servers', codecs included, each stage on a device of its
own if there are enough, as many microbatches in flight, and nothing ever leaves the
devices. ``scripts.benchmark relay`` compares the swarm with it.
"""

from collections.abc import Sequence
from pathlib import Path

from swarm_jax.launcher import flags, imports
from swarm_jax.metrics import write_json


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.relay_limit", description=__doc__)
    flags.add_experiment(parser)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of measuring (default: 10)"
    )
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    flags.add_device(parser, default="cpu")
    flags.add_die_with_parent(parser)
    args = parser.parse_args(argv)
    config = flags.experiment(args)
    flags.use_device(args.device)
    with imports.many():
        from scripts import wiring
        from scripts.relay_chain import tokens_per_s

    wiring.prepare_jax(config)
    boundaries = config.swarm.num_stages - 1
    # Flags and losses, 6 bytes a microbatch and stage, are left out.
    fetched = sum(wiring.bytes_on_wires(config).values()) * boundaries
    report = {
        "tokens_per_s": tokens_per_s(config, args.seconds),
        "device_to_host_bytes_per_token": fetched,
    }
    write_json(args.json, report)


if __name__ == "__main__":
    flags.run_main(main)
