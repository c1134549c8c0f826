"""Random faults on virtual time: thousands of swarms that must all end the same.

    python -m scripts.chaos --seeds 0:2000
    python -m scripts.chaos --seed 123

Each seed is a swarm of 1 to 4 stages and a schedule of faults (kills, freezes, drains,
joins, dead trainers, refused, lost, doubled and late messages). A run is right when its
ledgers are exact and its parameters are, bit for bit, those of a run without faults. Of
a failing seed it prints the line that replays it, and the shortest schedule that fails.
"""

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Sequence

from swarm_jax.launcher import flags
from swarm_jax.sim.chaos import failure, shrink
from swarm_jax.sim.faults import Schedule
from swarm_jax.sim.schedules import random_schedule


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.chaos", description=__doc__)
    parser.add_argument("--seeds", type=_range, default=range(500), metavar="A:B")
    parser.add_argument("--seed", type=int, help="one seed, with the log of its run")
    parser.add_argument("--schedule", metavar="JSON", help="one schedule, as printed")
    args = parser.parse_args(argv)
    if args.seed is not None:
        return _one(random_schedule(args.seed))
    if args.schedule:
        return _one(Schedule.from_dict(json.loads(args.schedule)))
    start_s = time.monotonic()
    workers = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = [f for f in pool.imap(_try, args.seeds, chunksize=8) if f]
    for seed, what, shortest in found:
        print(f"{what}\n  python -m scripts.chaos --seed {seed}")
        print(f"  python -m scripts.chaos --schedule '{shortest}'")
    seconds = time.monotonic() - start_s
    print(f"{len(args.seeds)} schedules in {seconds:.0f} s, {len(found)} failed")
    return 1 if found else 0


def _try(seed: int) -> tuple[int, str, str] | None:
    logging.disable(logging.CRITICAL)
    schedule = random_schedule(seed)
    what = failure(schedule)
    if what is None:
        return None
    return seed, what, json.dumps(shrink(schedule).to_dict())


def _one(schedule: Schedule) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(json.dumps(schedule.to_dict()))
    what = failure(schedule)
    print(what or "right")
    return 1 if what else 0


def _range(text: str) -> range:
    first, end = text.split(":")
    return range(int(first), int(end))


if __name__ == "__main__":
    flags.run_main(main)
