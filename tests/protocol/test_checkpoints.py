"""Checkpoints of the whole swarm: saved while it trains, and what it goes back to."""

import asyncio
from collections import Counter
from unittest.mock import patch

from swarm_jax.errors import CheckpointError
from swarm_jax.roles.messages import SaveState
from swarm_jax.sim.checkpoints import MemoryCheckpoints, MemoryFolder

PEERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_every_second_step_is_saved_by_one_peer_of_each_stage(play):
    folder = MemoryFolder()
    outcome = play([2, 2], steps=5, folder=folder, save_every=2)
    assert outcome.verdict == "right"
    assert sorted(folder.complete) == [2, 4, 5]
    stages = [folder.states[d][0] for d in folder.complete[4].values()]
    assert stages == [0, 1]
    assert outcome.count("answered", SaveState.op) == 3 * 2


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
        await run.until(lambda: run.state("stage0-0").step == 6)
        run.kill("stage1-0")
        await asyncio.sleep(5.0)
        run.swarm.start_peer(1)

    outcome = play(
        [2, 1], lose, trainers=0, steps=8, folder=folder, save_every=4, lost_stage_s=3.0
    )
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-0", "stage0-1", "stage1-1"}
    steps = [record["step"] for record in outcome.run.swarm.steps]
    assert steps == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]


def test_without_shared_storage_every_peer_saves_its_own_stage(play):
    """All are killed; one peer of each stage comes back with what it had itself."""
    folders = {f"{stage}-{n}": MemoryFolder(f"{stage}-{n}") for stage, n in PEERS}
    numbers = Counter()

    def own_folder(stage):
        n = numbers[stage] % 2
        numbers[stage] += 1
        return folders[f"{stage}-{n}"].of_stage(stage)

    async def lose(run):
        await run.until(
            lambda: all(4 in folder.complete for folder in folders.values())
        )
        for peer in list(run.swarm.alive):
            run.kill(peer)
        run.kill_trainer()
        await asyncio.sleep(10.0)
        for stage in (0, 1):
            run.swarm.start_peer(stage)
        run.start_trainer("trainer-c")

    outcome = play([2, 2], lose, steps=8, make_checkpoints=own_folder, save_every=2)
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-2", "stage1-2"}


def test_what_cannot_be_written_is_tried_again_at_the_next_checkpoint(play, caplog):
    folder = MemoryFolder()
    save = MemoryCheckpoints.save

    async def full(self, position, state):
        if position.step < 4 and self._stage == 1:
            raise CheckpointError("no space left on the device")
        return await save(self, position, state)

    with patch.object(MemoryCheckpoints, "save", full):
        outcome = play([1, 1], steps=6, folder=folder, save_every=2)
    assert outcome.verdict == "right"
    assert sorted(folder.complete) == [4, 6]
    assert caplog.text.count("no space left on the device") == 1
    assert "step 2 is not saved: no peer of stage 1" in caplog.text


def test_a_writer_that_dies_costs_one_step_of_the_checkpoint(play):
    folder = MemoryFolder()

    async def kill(run):
        run.at(
            "request_arrived", SaveState.op, "stage1-0", lambda: run.kill("stage1-0")
        )

    outcome = play([2, 2], kill, steps=6, folder=folder, save_every=2)
    assert outcome.verdict == "right"
    assert sorted(folder.complete) == [3, 4, 6]


def test_a_damaged_checkpoint_is_passed_over(play, caplog):
    folder = MemoryFolder()

    async def lose(run):
        await run.until(lambda: 4 in folder.complete)
        for peer in list(run.swarm.alive):
            run.kill(peer)
        run.kill_trainer()
        folder.damaged = {4}
        await asyncio.sleep(10.0)
        for stage in (0, 1):
            run.swarm.start_peer(stage)
        run.swarm.steps.clear()
        run.start_trainer("trainer-c")

    outcome = play([1, 1], lose, steps=8, folder=folder, save_every=2)
    assert outcome.verdict == "right"
    assert outcome.run.swarm.steps[0]["step"] == 3
    assert "step 4 cannot be restored" in caplog.text


def test_what_is_damaged_for_one_stage_takes_all_others_back_too(play, caplog):
    """When the trainer may; else it says what it could go on from."""
    folder = MemoryFolder()
    load = MemoryCheckpoints.load

    async def damaged(self, step):
        folder.damaged = {4} if self._stage == 1 else set()
        return await load(self, step)

    async def lose(run):
        await run.until(lambda: 4 in folder.complete)
        for peer in list(run.swarm.alive):
            run.kill(peer)
        run.kill_trainer()
        run.swarm.steps.clear()
        await asyncio.sleep(10.0)
        for stage in (0, 1, 2):
            run.swarm.start_peer(stage)
        run.start_trainer("trainer-c")
        await asyncio.sleep(5.0)
        run.kill_trainer("trainer-c")
        trainer = run.swarm.make_trainer("trainer-d", restart_if_lost=lambda: True)
        run.trainers["trainer-d"] = asyncio.ensure_future(trainer.run())

    with patch.object(MemoryCheckpoints, "load", damaged):
        outcome = play(
            [1, 1, 1], lose, steps=8, folder=folder, save_every=2, lost_stage_s=3.0
        )
    assert outcome.verdict == "right"
    assert [record["step"] for record in outcome.run.swarm.steps] == [*range(3, 9)]
    assert "then the run goes on from the checkpoint of step 2" in caplog.text
