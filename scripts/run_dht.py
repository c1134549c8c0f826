"""Starts the bootstrap of a swarm: the peer whose address all others are given.

    python -m scripts.run_dht --config configs/tiny.py

It prints its addresses and the commands for the next machines, holds no state, and runs
until Ctrl-C. --host_maddrs /ip4/0.0.0.0/tcp/4001 and --identity_path keep its address
the same over restarts.
"""

import asyncio
import sys
from collections.abc import Sequence

from swarm_jax.launcher import commands, flags, imports
from swarm_jax.launcher.signals import stop_signals
from swarm_jax.metrics import write_json


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.run_dht", description=__doc__)
    flags.add_experiment(parser)
    flags.add_network(parser)
    flags.add_process(parser)
    args = parser.parse_args(argv)
    config = flags.experiment(args)

    def greet(maddrs: Sequence[str]) -> str:
        return commands.welcome(
            flags.experiment_arguments(args),
            config.swarm.num_stages,
            config.run_id,
            maddrs,
        )

    asyncio.run(serve(args, greet))


async def serve(args, greet) -> None:
    """Runs a DHT node until SIGINT or SIGTERM.

    Args:
        args: Parsed options.
        greet: What to print, given the node's addresses.
    """
    with imports.many():
        from swarm_jax.net.hivemind_node import start_node

    stop = asyncio.Event()
    for number in stop_signals():
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    node = await start_node(
        initial_peers=args.initial_peers,
        host_maddrs=args.host_maddrs,
        announce_maddrs=args.announce_maddrs,
        identity_path=args.identity_path,
    )
    try:
        maddrs = node.visible_maddrs()
        print(greet(maddrs), flush=True)
        if args.ready_file:
            ready = {"peer_id": node.peer_id, "initial_peers": maddrs}
            write_json(args.ready_file, ready)
        ends = [asyncio.create_task(stop.wait()), asyncio.create_task(node.died())]
        ended, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if ends[1] in ended:
            sys.exit(ends[1].result())
    finally:
        await node.close()


if __name__ == "__main__":
    flags.run_main(main)
