"""Checkpoints of the whole swarm: saved while it trains, and what it goes back to."""

import asyncio

from swarm_jax.roles.messages import SaveState
from swarm_jax.sim.checkpoints import MemoryFolder


def test_every_second_step_is_saved_by_one_peer_of_each_stage(play):
    folder = MemoryFolder()
    outcome = play([2, 2], steps=5, folder=folder, save_every=2)
    assert outcome.verdict == "right"
    assert sorted(folder.complete) == [2, 4, 5]
    stages = [folder.states[d][0] for d in folder.complete[4].values()]
    assert stages == [0, 1]
    assert outcome.count("answered", SaveState.op) == 3 * 4


def test_a_swarm_that_was_lost_goes_on_from_its_newest_checkpoint(play):
    """Everybody is killed; other peers start, and another trainer."""
    folder = MemoryFolder()

    async def lose(run):
        await run.until(lambda: 4 in folder.complete)
        for peer in list(run.swarm.alive):
            run.kill(peer)
        run.kill_trainer()
        run.swarm.steps.clear()
        await asyncio.sleep(10.0)  # until the directory has forgotten them
        for stage in (0, 1):
            run.swarm.start_peer(stage)
        run.start_trainer("trainer-c")

    outcome = play([2, 1], lose, steps=8, folder=folder, save_every=2)
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-2", "stage1-1"}
    assert [record["step"] for record in outcome.run.swarm.steps] == [5, 6, 7, 8]


def test_a_lost_stage_goes_back_with_all_others_to_the_newest_checkpoint(play):
    folder = MemoryFolder()

    async def lose(run):
        trainer = run.swarm.make_trainer("trainer-a", restart_if_lost=lambda: True)
        run.trainers["trainer-a"] = asyncio.ensure_future(trainer.run())
        await run.until(lambda: 4 in folder.complete)
        run.kill("stage1-0")
        await asyncio.sleep(5.0)
        run.swarm.start_peer(1)

    outcome = play(
        [2, 1], lose, trainers=0, steps=8, folder=folder, save_every=2, lost_stage_s=3.0
    )
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-0", "stage0-1", "stage1-1"}
    steps = [record["step"] for record in outcome.run.swarm.steps]
    again = steps.index(5, steps.index(5) + 1)
    assert steps == [*range(1, again + 1), 5, 6, 7, 8]
