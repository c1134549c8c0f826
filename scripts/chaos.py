"""Faults on virtual time: thousands of swarms that must all end as plain training.

    python -m scripts.chaos --seeds 0:3000
    python -m scripts.chaos --seed 123
    python -m scripts.chaos --seed 123 --tied_head
    python -m scripts.chaos --cell "crash | mid-all-reduce | first"

First the fault matrix: every fault in every phase of the protocol at every role. Then
random schedules: each seed is a swarm of 1 to 4 stages with up to eight faults
(crashes, standstills, drains, joins, cut, slow and silent links, damaged, doubled, late
and lost messages, a directory that lags); and of every fourth seed one more, with a
tied head. A run is right when its ledgers are exact, its parameters are bit for bit
those of plain training, nobody is stuck and nothing is left over. Of what fails it
prints the line that replays it, and the shortest schedule that fails.
"""

import json
import logging
import multiprocessing
import multiprocessing.pool
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from swarm_jax.launcher import flags
from swarm_jax.sim.chaos import failure, run_schedule, shrink
from swarm_jax.sim.faults import Schedule
from swarm_jax.sim.matrix import cells, schedule_of
from swarm_jax.sim.schedules import random_schedule

CELLS = {cell.name: cell for cell in cells()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(prog="scripts.chaos", description=__doc__)
    parser.add_argument("--seeds", type=_range, default=range(3000), metavar="A:B")
    parser.add_argument("--seed", type=int, help="one seed, with the log of its run")
    parser.add_argument("--tied_head", action="store_true", help="for --seed")
    parser.add_argument("--cell", choices=sorted(CELLS), metavar="NAME")
    parser.add_argument("--schedule", metavar="JSON", help="one schedule, as printed")
    args = parser.parse_args(argv)
    if args.seed is not None:
        return _one(random_schedule(args.seed, tied_head=args.tied_head))
    if args.cell:
        return _one(schedule_of(CELLS[args.cell]))
    if args.schedule:
        return _one(Schedule.from_dict(json.loads(args.schedule)))
    possible = [name for name, cell in CELLS.items() if not cell.excluded]
    workers = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        bad_cells = _all(pool, "fault matrix, cells", _try_cell, possible)
        bad_seeds = _all(pool, "random schedules, seeds", _try_seed, args.seeds)
        try_tied, tied = partial(_try_seed, tied_head=True), args.seeds[::4]
        bad_tied = _all(pool, "with a tied head, seeds", try_tied, tied)
    return 1 if bad_cells or bad_seeds or bad_tied else 0


def _all(
    pool: multiprocessing.pool.Pool,
    title: str,
    attempt: Callable[[object], tuple[int, str]],
    things: Iterable[object],
) -> int:
    """Tries all; prints what failed, and one line that sums up."""
    start_s = time.monotonic()
    results = list(pool.imap(attempt, things, chunksize=8))
    failed = [what for _, what in results if what]
    for what in failed:
        print(what)
    struck = sum(count for count, _ in results)
    right, seconds = len(results) - len(failed), time.monotonic() - start_s
    print(
        f"{title}: {right} of {len(results)} end as plain training, "
        f"{struck} faults struck, {seconds:.0f} s",
        flush=True,
    )
    return len(failed)


def _try_cell(name: str) -> tuple[int, str]:
    schedule = schedule_of(CELLS[name])
    return _try(schedule, f'--cell "{name}"', len(schedule.faults))


def _try_seed(seed: int, tied_head: bool = False) -> tuple[int, str]:
    replay = f"--seed {seed}" + " --tied_head" * tied_head
    return _try(random_schedule(seed, tied_head=tied_head), replay, 0)


def _try(schedule: Schedule, replay: str, must_strike: int) -> tuple[int, str]:
    """How many faults struck, and if it is not right, what to tell the user."""
    logging.disable(logging.CRITICAL)
    replay = f"\n  python -m scripts.chaos {replay}"
    try:
        struck = len(run_schedule(schedule))
    except Exception as error:  # whatever it is, this schedule shows it
        shortest = json.dumps(shrink(schedule).to_dict())
        again = f"\n  python -m scripts.chaos --schedule '{shortest}'"
        return 0, f"{type(error).__name__}: {error}{replay}{again}"
    what = f"a fault of this cell never struck{replay}" if struck < must_strike else ""
    return struck, what


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
