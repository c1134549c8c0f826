"""Experiments on virtual time.

    python -m scripts.simulate rebalancing --plot rebalancing.png
    python -m scripts.simulate confirm --seeds 3

rebalancing: peers that move between the stages of a swarm, or do not, over 32 hours of
a spot market. Throughput is given in percent of what the same peers could do in the
best allocation, beside the figures of the SWARM paper. ``docs/elasticity.md`` says what
is compared.

confirm: an hour of a smaller market twice, by the fluid model that gives those figures
and by the real trainer and stage servers.
"""

import itertools
import json
import multiprocessing
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags
from swarm_jax.sim.live_replay import Slice, confirm
from swarm_jax.sim.rebalancing import (
    ABLATION,
    Outcome,
    cases,
    outcome_of,
    plot,
    rows,
    table,
)
from swarm_jax.sim.replay import Scenario


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.simulate", description=__doc__)
    parser.add_argument("what", choices=["rebalancing", "confirm"])
    parser.add_argument(
        "--seeds", type=int, default=10, metavar="N", help="traces (default: 10)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves")
    parser.add_argument(
        "--more", action="store_true", help="also rows that explain the others"
    )
    parser.add_argument(
        "--by-stage",
        action="store_true",
        help="draw a stage for each peer that is taken away, not the peer from all",
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="relative error of the throughputs that peers measure (default: 0)",
    )
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise ConfigError(f"--seeds {args.seeds}: use 1 or more")
    if args.what == "confirm":
        compare(args.seeds)
        return
    scenario = Scenario(taken_by_stage=args.by_stage, measurement_error=args.noise)
    names = list(cases(scenario)) if args.more else list(ABLATION)
    outcomes = replayed(scenario, names, args.seeds)
    found = rows(outcomes)
    Console(highlight=False).print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    if args.plot:
        plot({name: outcomes[name] for name in ABLATION}, args.plot)


def compare(seeds: int) -> None:
    """Prints what the real roles reach, and what the fluid says of the same hour."""
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        found = pool.starmap(confirm, [(Slice(), seed) for seed in range(seeds)])
    print("% of the best allocation's throughput over an hour")
    print("seed  roles  fluid  moves")
    for seed, one in enumerate(found):
        print(f"{seed:4}  {one.roles_pct:5.1f}  {one.fluid_pct:5.1f}  {one.moves:5}")
    roles = statistics.fmean(one.roles_pct for one in found)
    fluid = statistics.fmean(one.fluid_pct for one in found)
    print(f"mean  {roles:5.1f}  {fluid:5.1f}  difference {roles - fluid:+.1f}")


def replayed(
    scenario: Scenario, names: Sequence[str], seeds: int
) -> dict[str, list[Outcome]]:
    """All replays, side by side on all cores."""
    tasks = [(scenario, name, seed) for name in names for seed in range(seeds)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        found = iter(pool.starmap(outcome_of, tasks, chunksize=1))
    return {name: list(itertools.islice(found, seeds)) for name in names}


if __name__ == "__main__":
    flags.run_main(main)
