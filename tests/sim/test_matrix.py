"""The fault matrix: a cell ends as plain training, and its fault really struck.

Every third one of them here; ``make chaos`` has ``scripts.chaos`` try all.
"""

from collections import Counter
from dataclasses import replace

import pytest

from swarm_jax.sim.chaos import run_schedule
from swarm_jax.sim.matrix import EXCLUDED, FAULTS, PHASES, ROLES, cells, schedule_of

CELLS = {cell.name: cell for cell in cells()}
POSSIBLE = {name: cell for name, cell in CELLS.items() if not cell.excluded}
SOME = dict(list(POSSIBLE.items())[::3])
TIED = {
    name: cell
    for name, cell in POSSIBLE.items()
    if cell.role in ("first", "last")
    and cell.phase
    in (
        "mid-all-reduce",
        "between prepare and commit",
        "mid-join as joiner",
        "while moving, mid-state",
    )
}
"""Where two stages share a table and it matters."""
DELAYED = {
    name: cell
    for name, cell in POSSIBLE.items()
    if cell.role in ("middle", "trainer")
    and cell.fault in ("crash", "hang", "partition, loud", "duplicate")
    and cell.phase
    in (
        "after compute before answer",
        "mid-all-reduce",
        "between prepare and commit",
        "mid-join as joiner",
        "while draining",
        "while moving, mid-state",
    )
}
"""Where it matters that a step is closed while the next one is fed."""


@pytest.mark.parametrize("name", SOME)
def test_a_cell_ends_as_plain_training(name):
    schedule = schedule_of(POSSIBLE[name])
    assert run_schedule(schedule) == frozenset(range(len(schedule.faults)))


@pytest.mark.parametrize("name", TIED)
def test_a_cell_with_a_tied_head_does_so_too(name):
    schedule = schedule_of(TIED[name], tied_head=True)
    assert run_schedule(schedule) == frozenset(range(len(schedule.faults)))


@pytest.mark.parametrize("name", DELAYED)
def test_a_cell_with_delayed_updates_does_so_too(name):
    schedule = replace(schedule_of(DELAYED[name]), delayed_updates=True)
    assert run_schedule(schedule) == frozenset(range(len(schedule.faults)))


@pytest.mark.chaos
@pytest.mark.parametrize("name", sorted(POSSIBLE.keys() - DELAYED.keys()))
def test_so_do_all_others(name):
    schedule = replace(schedule_of(POSSIBLE[name]), delayed_updates=True)
    assert run_schedule(schedule) == frozenset(range(len(schedule.faults)))


def test_every_cell_is_there_or_left_out_for_a_reason():
    assert len(CELLS) == len(FAULTS) * len(PHASES) * len(ROLES) == 900
    assert len(POSSIBLE) == 721
    used = Counter(cell.excluded for cell in CELLS.values() if cell.excluded)
    assert set(used) == {why for _, why in EXCLUDED}
    assert sum(used.values()) == 179


@pytest.mark.parametrize("axis", ["fault", "phase", "role"])
def test_no_row_of_the_matrix_is_left_out_whole(axis):
    table = {"fault": FAULTS, "phase": PHASES, "role": ROLES}[axis]
    assert {getattr(cell, axis) for cell in SOME.values()} == set(table)
