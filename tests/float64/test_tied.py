"""A tied head on another stage than its embedding: plain training's, to 1e-9."""

import asyncio

import numpy as np
import pytest

from tests.float64.plain import LAYERS, check_equal, make_config, train, train_plainly

CHOICES = {
    "tied_head": True,
    "norm": "layer",
    "positions": "learned",
    "biases": True,
}
COMMIT = "request_arrived", "commit"


def tied_config(layers_per_stage, optimizer="adamw"):
    config = make_config(layers_per_stage, **CHOICES)
    config.optimizer.name = optimizer
    return config.check()


@pytest.fixture(scope="module")
def tied():
    """What plain training gives, by optimizer."""
    return {
        name: train_plainly(tied_config((LAYERS,), name)) for name in ("adamw", "lamb")
    }


def check_copies(swarm):
    """Bit for bit equal, on every peer that has taken the last step."""
    computes = [
        (swarm.computes[peer].params, server.state.stage)
        for peer, server in swarm.servers.items()
        if server.state.step == swarm.config.steps
    ]
    tables = [
        params["embed" if stage == 0 else "tied"]["embedding"]
        for params, stage in computes
        if stage in (0, swarm.config.swarm.num_stages - 1)
    ]
    assert len(tables) >= 2
    for table in tables[1:]:
        np.testing.assert_array_equal(table, tables[0])


@pytest.mark.parametrize(
    ("layers", "peers", "optimizer"),
    [((3, 2), [1, 2], "adamw"), ((2, 1, 2), [3, 1, 2], "lamb")],
)
def test_any_partition_trains_the_same_model(layers, peers, optimizer, tied):
    swarm, totals = train(tied_config(layers, optimizer), peers)
    check_equal(swarm, totals, tied[optimizer])
    check_copies(swarm)


@pytest.mark.parametrize(("victim", "frozen"), [("stage0-0", 0), ("stage2-0", 2)])
def test_an_end_whose_gradient_dies_between_prepare_and_commit(victim, frozen, tied):
    """The other peer of that stage, which slept, gets the step again."""

    async def kill(swarm):
        sleeper = f"stage{frozen}-1"
        while swarm.servers[sleeper].state.step < 3:
            await asyncio.sleep(0.001)
        swarm.network.freeze(sleeper)
        killed = asyncio.Event()

        def hear(event):
            if (event.kind, event.op, event.peer) == (*COMMIT, victim):
                swarm.kill_now(victim)
                killed.set()

        swarm.network.wires.listeners.append(hear)
        await killed.wait()
        others = set(swarm.alive) - {sleeper}
        while any(swarm.servers[peer].state.step < 4 for peer in others):
            await asyncio.sleep(0.001)
        swarm.network.thaw(sleeper)

    peers = [1, 1, 1]
    peers[frozen] = 2
    swarm, totals = train(tied_config((2, 1, 2)), peers, kill)
    check_equal(swarm, totals, tied["adamw"])
    check_copies(swarm)
