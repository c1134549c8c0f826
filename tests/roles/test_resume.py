"""A run of one peer per stage that is lost and goes on has the same bits in the end."""

import asyncio

from swarm_jax.sim.checkpoints import MemoryFolder
from swarm_jax.sim.clock import run_virtual


def in_order(config):
    """One microbatch at a time: nothing is added up in another order."""
    config.tuning.microbatches_in_flight = 1
    config.checkpoint.every_steps = 2
    return config


async def states_of(swarm):
    return {
        peer: [array.tobytes() for array in await compute.state()]
        for peer, compute in swarm.computes.items()
    }


def train(swarm):
    """The final state of each peer."""

    async def main():
        await swarm.run()
        return await states_of(swarm)

    return run_virtual(main())


def lose(swarm, folder, step):
    """Kills all in the middle of the step after the checkpoint of ``step``."""

    async def main():
        run = asyncio.ensure_future(swarm.run())
        await asyncio.sleep(0.001)
        first = swarm.servers["stage0-0"].state
        while step not in folder.complete or not first.ledger.counted:
            await asyncio.sleep(0.001)
        await asyncio.gather(*map(swarm.kill, list(swarm.alive)))
        run.cancel()
        await asyncio.wait([run])

    run_virtual(main())


def without_times(records):
    names = "step", "train_loss", "gradient_norm", "validation_loss"
    return {r["step"]: {name: r.get(name) for name in names} for r in records}


def test_losses_and_states_are_bit_for_bit_those_of_an_uninterrupted_run(
    config, make_swarm
):
    in_order(config)
    uninterrupted = make_swarm(config, [1, 1, 1])
    expected = train(uninterrupted)
    folder = MemoryFolder()
    lost = make_swarm(config, [1, 1, 1], make_checkpoints=folder.of_stage)
    lose(lost, folder, step=4)
    resumed = make_swarm(config, [1, 1, 1], make_checkpoints=folder.of_stage)
    assert train(resumed) == expected
    assert resumed.steps[0]["step"] == 5
    ours = without_times([*lost.steps, *resumed.steps])
    assert ours == without_times(uninterrupted.steps)


def test_who_is_restored_at_the_last_step_knows_that_the_run_is_over(
    config, make_swarm
):
    folder = MemoryFolder()
    train(make_swarm(config, [1, 1, 1], make_checkpoints=folder.of_stage))
    again = make_swarm(config, [1, 1, 1], make_checkpoints=folder.of_stage)
    train(again)
    assert not again.steps
    assert again.finished == again.servers.keys()
