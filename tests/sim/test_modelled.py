"""Exact arithmetic: any split of the work gives the same bits."""

import pytest

from swarm_jax.sim.chaos import run_schedule
from swarm_jax.sim.faults import Schedule


@pytest.mark.parametrize("peers", [(1,), (3,), (2, 3), (1, 2, 3, 2)])
def test_any_number_of_peers_gives_the_bits_of_plain_training(peers):
    run_schedule(Schedule(peers, 1, ()))
