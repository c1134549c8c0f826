"""What a server saves and restores, beside its event loop."""

import asyncio
import threading
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

from swarm_jax.errors import CheckpointError
from swarm_jax.roles.checkpoints import SavedPosition
from swarm_jax.stage.checkpoints import CheckpointFolder
from swarm_jax.stage.layered import LayeredState
from swarm_jax.stage.saved_stage import SavedStage

OTHER = "0" * 64


class Stage(NamedTuple):
    layered: LayeredState
    state: list[np.ndarray]


def make_stage(toy_stage):
    params = toy_stage.init(7)
    state = params, optax.adamw(1e-2).init(params)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    return Stage(LayeredState(state, toy_stage.first_layer), leaves)


@pytest.fixture
def stage(toy):
    return make_stage(toy)


class SlowFolder(CheckpointFolder):
    """Whose disk waits to be let on."""

    def __init__(self, root):
        super().__init__(root, model_fingerprint="ours")
        self.begun, self.let_on = threading.Event(), threading.Event()
        self.threads = set()

    def write(self, manifest, layers):
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        assert self.let_on.wait(60)
        super().write(manifest, layers)


@pytest.fixture
def make_saved(stage, tmp_path):
    """``make(folder)``: of one stage, which is the whole model or one of two."""
    made = []

    def make(folder="folder", num_stages=1):
        if isinstance(folder, str):
            folder = CheckpointFolder(tmp_path / folder, model_fingerprint="ours")
        saved = SavedStage(
            stage.layered, folder, stage=0, num_stages=num_stages, config={"seed": 1}
        )
        made.append(saved)
        return saved

    yield make
    for saved in made:
        saved.close()


def position_at(step):
    return SavedPosition(2, step, f"lineage {step}", (step - 1, 0.25))


def as_bytes(arrays):
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays]


async def checkpoint(saved, stage, step, others=None):
    digest = await saved.save(position_at(step), stage.state)
    await saved.complete(step, 2, {0: digest} | (others or {}), {"loss": 1.5})
    return digest


def test_a_server_that_comes_back_has_its_state(make_saved, stage):
    async def scenario():
        first = make_saved()
        assert first.steps() == []
        await checkpoint(first, stage, 10)
        assert first.steps() == [10]
        second = make_saved()
        assert second.steps() == [10]
        saved, state = await second.load(10)
        place = saved.generation, saved.step, saved.lineage, saved.last_commit
        assert place == (2, 10, "lineage 10", (9, 0.25))
        assert as_bytes(state) == as_bytes(stage.state)

    asyncio.run(scenario())


def test_a_run_that_has_committed_nothing_is_restored(make_saved, stage):
    async def scenario():
        saved = make_saved()
        start = SavedPosition(0, 0, "generation 0", None)
        digest = await saved.save(start, stage.state)
        await saved.complete(0, 0, {0: digest}, {})
        assert (await saved.load(0))[0].last_commit is None

    asyncio.run(scenario())


def test_a_stage_alone_is_restored_without_the_other_stages(make_saved, stage):
    async def scenario():
        saved = make_saved(num_stages=2)
        await checkpoint(saved, stage, 10, others={1: OTHER})
        assert saved.steps() == make_saved(num_stages=2).steps() == [10]

    asyncio.run(scenario())


def test_a_folder_is_known_by_whoever_shares_it(make_saved, tmp_path):
    (tmp_path / "same").symlink_to(tmp_path / "folder")
    names = [make_saved(place).folder for place in ("folder", "same", "other")]
    assert names[0] == names[1] != names[2]


def test_a_damaged_step_is_not_offered_again(make_saved, stage, tmp_path):
    async def scenario():
        saved = make_saved()
        await checkpoint(saved, stage, 10)
        await checkpoint(saved, stage, 20)
        for array in (tmp_path / "folder" / "step_00000020").rglob("params*/0*"):
            array.write_bytes(bytes(array.stat().st_size))
        with pytest.raises(CheckpointError, match="Step 10 is there"):
            await saved.load(20)
        assert saved.steps() == [10]
        await checkpoint(saved, stage, 20)
        assert saved.steps() == [10, 20]

    asyncio.run(scenario())


def test_saving_is_done_by_a_thread_of_its_own_one_at_a_time(
    make_saved, stage, tmp_path
):
    async def scenario():
        slow = SlowFolder(tmp_path / "slow")
        saved = make_saved(slow)
        first = asyncio.create_task(saved.save(position_at(10), stage.state))
        await asyncio.to_thread(slow.begun.wait)
        with pytest.raises(CheckpointError, match="busy"):
            await saved.save(position_at(20), stage.state)
        slow.let_on.set()
        await saved.complete(10, 2, {0: await first}, {})
        await checkpoint(saved, stage, 20)
        assert saved.steps() == [10, 20]
        (thread,) = slow.threads
        assert thread.startswith("checkpoints")

    asyncio.run(scenario())


def test_a_save_that_nobody_waits_for_goes_on_and_keeps_the_next_one_out(
    make_saved, stage, tmp_path
):
    async def scenario():
        slow = SlowFolder(tmp_path / "slow")
        saved = make_saved(slow)
        first = asyncio.create_task(saved.save(position_at(10), stage.state))
        await asyncio.to_thread(slow.begun.wait)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(CheckpointError, match="busy"):
            await saved.save(position_at(20), stage.state)
        slow.let_on.set()
        saved.close()
        saved._worker.shutdown(wait=True)
        assert len(list((tmp_path / "slow" / "step_00000010").iterdir())) == 2

    asyncio.run(scenario())


def test_a_failed_save_does_not_keep_the_next_one_out(make_saved, stage, tmp_path):
    async def scenario():
        saved = make_saved()
        (tmp_path / "folder" / "step_00000010").write_text("in the way")
        with pytest.raises(CheckpointError, match="was not saved"):
            await checkpoint(saved, stage, 10)
        (tmp_path / "folder" / "step_00000010").unlink()
        await checkpoint(saved, stage, 20)
        assert saved.steps() == [20]

    asyncio.run(scenario())


def test_a_folder_that_cannot_be_written_to_is_told_at_once(make_saved, tmp_path):
    (tmp_path / "folder").write_text("in the way")
    with pytest.raises(CheckpointError, match="no checkpoint can be saved"):
        make_saved()


def test_what_others_complete_is_seen_with_the_next_complete(make_saved, stage):
    async def scenario():
        ours, theirs = make_saved(), make_saved()
        digest = await checkpoint(theirs, stage, 10)
        assert ours.steps() == []
        await ours.complete(10, 2, {0: digest}, {})
        assert ours.steps() == [10]

    asyncio.run(scenario())


def test_another_experiments_folder_is_refused_at_once(make_saved, stage, tmp_path):
    async def scenario():
        await checkpoint(make_saved(), stage, 10)
        theirs = CheckpointFolder(tmp_path / "folder", model_fingerprint="theirs")
        with pytest.raises(CheckpointError, match="another experiment"):
            make_saved(theirs)

    asyncio.run(scenario())
