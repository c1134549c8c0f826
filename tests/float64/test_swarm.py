"""The swarm's result is plain training's, to 1e-9: no mistake hides behind rounding.

Real roles over the in-process network, in float64 with a float64 wire, on virtual time.
"""

import asyncio
import random

import pytest

from tests.float64.plain import LAYERS, check_equal, make_config, train


def random_swarm(seed: int):
    """Layers and number of peers of each of 1 to 5 stages."""
    generator = random.Random(seed)
    stages = generator.randint(1, LAYERS)
    cuts = sorted(generator.sample(range(1, LAYERS), stages - 1))
    layers = [b - a for a, b in zip([0, *cuts], [*cuts, LAYERS], strict=True)]
    return tuple(layers), [generator.randint(1, 4) for _ in range(stages)]


@pytest.mark.parametrize("seed", range(10))
def test_any_partition_trains_the_same_model(seed, plain):
    layers, peers = random_swarm(seed)
    swarm, totals = train(make_config(layers), peers)
    check_equal(swarm, totals, plain)


@pytest.mark.parametrize("victim", ["stage0-0", "stage1-1", "stage2-0"])
def test_a_peer_killed_in_the_middle_of_a_step_changes_nothing(victim, plain):
    async def kill(swarm):
        state = swarm.servers[victim].state
        while state.step < 3 or not state.ledger.counted:
            await asyncio.sleep(0.001)
        await swarm.kill(victim)

    swarm, totals = train(make_config((2, 1, 2)), [2, 2, 2], kill)
    assert swarm.servers[victim].state.step < swarm.config.steps
    check_equal(swarm, totals, plain)
