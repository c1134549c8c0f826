"""A run that was lost and goes on from the disk is plain training, to 1e-9.

Also on another number of stages, and with other peers. Real roles, real JAX, real
files; virtual time.
"""

import asyncio
from concurrent.futures import Executor, Future

import pytest

from scripts.wiring import make_checkpoints, make_compute
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.data import RandomTokens
from swarm_jax.sim.swarm import SimulatedSwarm
from swarm_jax.stage import saved_stage
from tests.float64.plain import check_equal, make_config


class AtOnce(Executor):
    """A disk that takes no time: a thread's time is not on the virtual clock."""

    def submit(self, function, /, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # belongs to whoever waits for it
            future.set_exception(error)
        return future


@pytest.fixture(autouse=True)
def disk_at_once(monkeypatch):
    monkeypatch.setattr(saved_stage, "ThreadPoolExecutor", lambda *_: AtOnce())


def resumable(layers_per_stage):
    config = make_config(layers_per_stage)
    config.checkpoint.every_steps = 4
    return config


def make_swarm(config, peers_per_stage, folder):
    def make(stage):
        compute = make_compute(
            config, stage, inline=True, duration_s=lambda operation: 0.01
        )
        computes[stage] = compute
        return compute

    computes = {}
    return SimulatedSwarm(
        config,
        data=RandomTokens(config),
        make_compute=make,
        make_checkpoints=lambda stage: make_checkpoints(
            config, stage, computes[stage], str(folder)
        ),
        peers_per_stage=peers_per_stage,
    )


def train_until(swarm, step):
    """Kills everybody in the middle of a step, some steps after a checkpoint."""

    async def main():
        run = asyncio.ensure_future(swarm.run())
        await asyncio.sleep(0.001)
        last = len(swarm.config.swarm.layers_per_stage) - 1
        state = swarm.servers[f"stage{last}-0"].state
        while state.step < step or not state.ledger.counted:
            await asyncio.sleep(0.001)
        await asyncio.gather(*map(swarm.kill, list(swarm.alive)))
        run.cancel()
        await asyncio.wait([run])

    run_virtual(main())


def train_to_the_end(swarm):
    return run_virtual(swarm.run())


def check_resumed(parts, totals, plain):
    """The losses of all parts, what was lost taken again, and the last parameters."""
    records = {record["step"]: record for part in parts for record in part.steps}
    last = parts[-1]
    last.steps[:] = [record for _, record in sorted(records.items())]
    check_equal(last, totals, plain)


def test_a_lost_run_goes_on_where_its_checkpoint_is(tmp_path, plain):
    config = resumable((2, 1, 2))
    lost = make_swarm(config, [2, 1, 2], tmp_path)
    train_until(lost, step=10)
    resumed = make_swarm(config, [1, 2, 2], tmp_path)
    totals = train_to_the_end(resumed)
    assert [record["step"] for record in resumed.steps] == list(range(9, 21))
    check_resumed([lost, resumed], totals, plain)


def test_it_goes_on_with_other_stages_and_peers(tmp_path, plain):
    parts = [
        make_swarm(resumable(layers), peers, tmp_path)
        for layers, peers in [
            ((2, 1, 2), [1, 2, 1]),
            ((2, 3), [2, 1]),
            ((1, 1, 2, 1), [1, 1, 2, 1]),
        ]
    ]
    train_until(parts[0], step=5)
    train_until(parts[1], step=13)
    totals = train_to_the_end(parts[2])
    assert parts[1].steps[0]["step"] == 5
    assert parts[2].steps[0]["step"] == 13
    check_resumed(parts, totals, plain)
