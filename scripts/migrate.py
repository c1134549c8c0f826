"""Moves a peer to another stage, while the swarm trains.

    python -m scripts.migrate --config configs/tiny.py --peer stage0-1 --stage 2 \\
        --initial_peers /ip4/10.0.0.5/tcp/4001/p2p/12D3...

The peer is named by its name, its peer id or the end of that. It hands over what it has
counted, fetches the state of its new stage, and serves that: nothing is lost. A trainer
must be there, since it grants moves; the only peer of a stage stays.
"""

import asyncio
import uuid
from collections.abc import Sequence

from swarm_jax.errors import ConfigError, StartupError
from swarm_jax.launcher import flags, imports


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.migrate", description=__doc__)
    flags.add_experiment(parser)
    parser.add_argument("--peer", required=True, help="name or peer id")
    parser.add_argument("--stage", type=int, required=True, help="counted from 0")
    parser.add_argument(
        "--timeout_s",
        type=float,
        default=120.0,
        help="give up waiting after this (default: %(default)g)",
    )
    flags.add_network(parser)
    args = parser.parse_args(argv)
    return asyncio.run(migrate(args, flags.experiment(args)))


async def migrate(args, config) -> int:
    with imports.many():
        from scripts import process
        from swarm_jax.core.reports import ONLINE
        from swarm_jax.roles.peers import SwarmView
        from swarm_jax.roles.wishes import Wishes

    stages = range(config.swarm.num_stages)
    if args.stage not in stages:
        raise ConfigError(
            f"--stage {args.stage}: this experiment has 0 to {stages[-1]}"
        )
    if not args.initial_peers:
        raise ConfigError("--initial_peers: name a peer of the swarm")
    async with process.joined(args, config) as network:
        view = SwarmView(config, network.directory, stages)
        await view.join()
        peer, source = find(view.stages, args.peer)
        if source == args.stage:
            print(f"{args.peer} serves stage {source} already")
            return 0
        if len(view.online(source)) < 2:
            raise ConfigError(
                f"{args.peer} is the only peer of stage {source}: start another one of "
                "that stage first"
            )
        wishes = Wishes(network.directory, view.prefix)
        name, life_s = uuid.uuid4().hex, args.timeout_s
        await wishes.make(peer, args.stage, name=name, life_s=life_s)
        print(f"asked {args.peer} to move from stage {source} to stage {args.stage}")
        try:
            async with asyncio.timeout(args.timeout_s):
                while peer not in view.online(args.stage):
                    await asyncio.sleep(config.tuning.directory_refresh_s)
                    await view.refresh()
        except TimeoutError:
            raise StartupError(
                f"{args.peer} has not moved in {args.timeout_s:g} s. Is there a "
                "trainer? Its log and the peer's say why"
            ) from None
    records = view.stages[args.stage]
    print(f"{records[peer].name} is {ONLINE} in stage {args.stage}")
    return 0


def find(stages, name: str) -> tuple[str, int]:
    """Peer id and stage of the one that ``name`` means.

    Raises:
        ConfigError: It means none, or several.
    """
    peers = {
        (peer, stage): record.name
        for stage, records in stages.items()
        for peer, record in records.items()
        if record.state != "OFFLINE"
    }
    found = [
        place for place, own in peers.items() if own == name or place[0].endswith(name)
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(f"{own} (stage {p[1]})" for p, own in peers.items()))
    what = "is no peer" if not found else "means several peers"
    raise ConfigError(
        f"--peer {name}: {what} of this swarm. There are: {names or 'none'}"
    )


if __name__ == "__main__":
    flags.run_main(main)
