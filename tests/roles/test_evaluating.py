"""Guests that evaluate: right, without a trace, and clear when it cannot be done."""

import asyncio

import pytest

from swarm_jax.errors import StartupError
from swarm_jax.roles.evaluating import Evaluation
from swarm_jax.sim.clock import run_virtual


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def evaluation(swarm, name="guest", **options):
    return Evaluation(
        swarm.config,
        calls=swarm.network.calls(name),
        directory=swarm.network.directory(name),
        data=swarm.data,
        server_command=lambda stage: f"start a peer of stage {stage}",
        **options,
    )


async def start(swarm, peers):
    for stage, count in enumerate(peers):
        for _ in range(count):
            swarm.start_peer(stage)
    await until(lambda: len(swarm.ready) == sum(peers))


async def end(swarm):
    for peer in list(swarm.alive):
        await swarm.kill(peer)


def validated(swarm):
    """The leader's own figures, by the number of updates."""
    return {
        record["step"]: record["validation_loss"]
        for record in swarm.steps
        if "validation_loss" in record
    }


def test_the_losses_are_those_that_the_leader_finds(config, make_swarm):
    config.validation.every_steps = 2
    swarm = make_swarm(config, [2, 1, 2])

    async def main():
        await start(swarm, [2, 1, 2])
        await swarm.make_trainer("trainer").run()
        found = await evaluation(swarm).run()
        await end(swarm)
        return found

    step, losses = run_virtual(main())
    assert step == config.steps
    assert losses == {"validation_loss": pytest.approx(validated(swarm)[step], abs=0)}


def test_a_swarm_that_nobody_trains_is_evaluated(config, make_swarm):
    swarm = make_swarm(config, [1, 1, 1])

    async def main():
        await start(swarm, [1, 1, 1])
        found = await evaluation(swarm).run()
        await end(swarm)
        return found

    step, losses = run_virtual(main())
    assert step == 0 and 5 < losses["validation_loss"] < 6


def test_training_goes_on_beside_it_as_if_it_were_not_there(config, make_swarm):
    config.validation.every_steps = 1
    config.data.target_batch_size = 48
    alone = make_swarm(config, [1, 1, 1])
    run_virtual(alone.run())
    swarm = make_swarm(config, [1, 1, 1])

    async def main():
        found = []
        await start(swarm, [1, 1, 1])
        training = asyncio.ensure_future(swarm.make_trainer("trainer").run())
        while not training.done():
            found.append(await evaluation(swarm, f"guest{len(found)}").run())
        totals = await training
        await end(swarm)
        return found, totals

    found, totals = run_virtual(main())
    assert len({step for step, _ in found}) >= 3
    expected = validated(alone)
    for step, losses in found:
        if step:
            assert losses["validation_loss"] == pytest.approx(expected[step], rel=1e-6)
    assert totals.microbatches.lost == totals.microbatches.counted_twice == 0
    for ours, theirs in zip(swarm.steps, alone.steps, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)


def test_two_guests_with_microbatches_of_one_name_are_both_answered(config, make_swarm):
    swarm = make_swarm(config, [1, 1, 1])

    async def main():
        await start(swarm, [1, 1, 1])
        guests = [evaluation(swarm, name).run() for name in ("one", "other")]
        found = await asyncio.wait_for(asyncio.gather(*guests), 5.0)
        await end(swarm)
        return found

    one, other = run_virtual(main())
    assert one == other


def test_steps_that_are_too_short_are_said(config, make_swarm):
    config.steps = 200
    config.validation.sequences = 400
    swarm = make_swarm(config, [1, 1, 1])

    async def main():
        await start(swarm, [1, 1, 1])
        training = asyncio.ensure_future(swarm.make_trainer("trainer").run())
        await until(lambda: len(swarm.steps) > 1)
        with pytest.raises(StartupError, match=r"validation\.sequences"):
            await evaluation(swarm).run()
        training.cancel()
        await asyncio.wait([training])
        await end(swarm)

    run_virtual(main())


def test_a_stage_without_a_peer_is_named(config, make_swarm):
    swarm = make_swarm(config, [1, 0, 1])

    async def main():
        await start(swarm, [1, 0, 1])
        with pytest.raises(StartupError, match="start a peer of stage 1"):
            await evaluation(swarm, wait_s=3.0).run()
        await end(swarm)

    run_virtual(main())


def test_it_waits_for_a_peer_that_comes(config, make_swarm):
    swarm = make_swarm(config, [1, 0, 1])

    async def main():
        await start(swarm, [1, 0, 1])
        evaluating = asyncio.ensure_future(evaluation(swarm).run())
        await asyncio.sleep(5.0)
        swarm.start_peer(1)
        found = await evaluating
        await end(swarm)
        return found

    assert run_virtual(main())[0] == 0
