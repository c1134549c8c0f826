"""With delayed updates too, a swarm's result is plain training's, to 1e-9."""

import asyncio

import numpy as np
import pytest

from swarm_jax.roles.reducing import Reducing
from tests.float64.plain import LAYERS, check_equal, make_config, train, train_plainly
from tests.float64.test_resume import (
    check_resumed,
    disk_at_once,  # noqa: F401
    make_swarm,
    resumable,
    train_to_the_end,
    train_until,
)


def delayed(config, is_delayed=True):
    config.swarm.delayed_updates = is_delayed
    return config


@pytest.fixture(scope="module")
def plain():
    return train_plainly(delayed(make_config((LAYERS,))))


def test_it_is_another_algorithm(plain):
    """From the third step on: the first update's learning rate is 0."""
    losses, _ = train_plainly()
    assert plain[0][:2] == losses[:2]
    assert np.all(np.abs(np.subtract(plain[0][2:], losses[2:])) > 1e-6)


@pytest.mark.parametrize(
    ("layers", "peers"), [((LAYERS,), [2]), ((2, 3), [1, 1]), ((2, 1, 2), [2, 3, 1])]
)
def test_any_partition_trains_the_same_model(layers, peers, plain):
    swarm, totals = train(delayed(make_config(layers)), peers)
    check_equal(swarm, totals, plain)


@pytest.mark.parametrize("victim", ["stage0-0", "stage2-0"])
def test_a_peer_killed_when_it_has_counted_ahead_changes_nothing(
    victim, plain, monkeypatch
):
    mean = Reducing.mean

    async def slow(reducing, request, contribution):
        await asyncio.sleep(0.3)
        return await mean(reducing, request, contribution)

    monkeypatch.setattr(Reducing, "mean", slow)

    async def kill(swarm):
        state = swarm.servers[victim].state
        while state.step < 3 or not state.early.counted:
            await asyncio.sleep(0.001)
        await swarm.kill(victim)

    swarm, totals = train(delayed(make_config((2, 1, 2))), [2, 2, 2], kill)
    assert swarm.servers[victim].state.step < swarm.config.steps
    check_equal(swarm, totals, plain)


def test_a_lost_run_goes_on_with_other_stages(tmp_path, plain):
    parts = [
        make_swarm(delayed(resumable(layers)), peers, tmp_path)
        for layers, peers in [((2, 1, 2), [1, 2, 1]), ((2, 3), [2, 1])]
    ]
    train_until(parts[0], step=7)
    totals = train_to_the_end(parts[1])
    assert parts[1].steps[0]["step"] == 5
    check_resumed(parts, totals, plain)


def test_a_checkpoint_without_goes_on_from_its_own_parameters(tmp_path, caplog):
    """Its first step is that of plain training; and the way back is open, too."""
    plain_losses, _ = train_plainly()
    first = make_swarm(resumable((2, 3)), [1, 1], tmp_path)
    train_until(first, step=5)
    second = make_swarm(delayed(resumable((2, 1, 2))), [1, 1, 1], tmp_path)
    train_until(second, step=10)
    assert "saved without swarm.delayed_updates" in caplog.text
    losses = {record["step"]: record["train_loss"] for record in second.steps}
    assert losses[5] == pytest.approx(plain_losses[4], rel=1e-12)
    assert losses[6] != pytest.approx(plain_losses[5], rel=1e-12)
    third = make_swarm(resumable((2, 3)), [1, 1], tmp_path)
    assert train_to_the_end(third).microbatches.exact
    assert third.steps[0]["step"] == 9
