"""What a server saves and restores, beside its event loop."""

import asyncio
import threading
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

from swarm_jax.core.reports import CommitRecord
from swarm_jax.core.stage_state import Position
from swarm_jax.errors import CheckpointError
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
    """``make(*places)``: of one stage, which is the whole model or one of two."""
    made = []

    def make(*places, num_stages=1, **folders):
        folders = {
            place: CheckpointFolder(tmp_path / place, model_fingerprint="ours")
            for place in places
        } | folders
        saved = SavedStage(
            stage.layered,
            stage=0,
            num_stages=num_stages,
            shared=folders.get("shared"),
            own=folders.get("own"),
            config={"seed": 1},
        )
        made.append(saved)
        return saved

    yield make
    for saved in made:
        saved.close()


def position_at(step):
    return Position(2, step, f"lineage {step}", CommitRecord(step - 1, 0.25))


def as_bytes(arrays):
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays]


async def checkpoint(saved, stage, step, *, to_shared=True, others=None):
    digest = await saved.save(position_at(step), stage.state, to_shared=to_shared)
    await saved.complete(step, 2, {0: digest} | (others or {}), {"loss": 1.5})
    return digest


@pytest.mark.parametrize("places", [("shared",), ("own",), ("own", "shared")])
def test_a_server_that_comes_back_has_its_state(places, make_saved, stage):
    async def scenario():
        first = make_saved(*places)
        assert first.steps() == []
        await checkpoint(first, stage, 10)
        assert first.steps() == [10]
        second = make_saved(*places)
        assert second.steps() == [10]
        *place, state = await second.load(10)
        assert place == [2, 10, "lineage 10", (9, 0.25)]
        assert as_bytes(state) == as_bytes(stage.state)

    asyncio.run(scenario())


def test_a_run_that_has_committed_nothing_is_restored(make_saved, stage):
    async def scenario():
        saved = make_saved("own")
        start = Position(0, 0, "generation 0", None)
        digest = await saved.save(start, stage.state, to_shared=False)
        await saved.complete(0, 0, {0: digest}, {})
        assert (await saved.load(0))[:4] == (*start,)

    asyncio.run(scenario())


def test_only_its_own_folder_counts_without_the_other_stages(make_saved, stage):
    async def scenario():
        saved = make_saved("own", "shared", num_stages=2)
        await checkpoint(saved, stage, 10, others={1: OTHER})
        await checkpoint(saved, stage, 20, others={1: OTHER}, to_shared=False)
        assert saved.steps() == [10, 20]
        assert make_saved("own", num_stages=2).steps() == [10, 20]
        assert make_saved("shared", num_stages=2).steps() == []

    asyncio.run(scenario())


def test_what_is_damaged_in_one_place_is_taken_from_the_other(
    make_saved, stage, tmp_path
):
    async def scenario():
        saved = make_saved("own", "shared")
        await checkpoint(saved, stage, 10)
        for array in (tmp_path / "own").rglob("params*/0*"):
            array.write_bytes(bytes(array.stat().st_size))
        *_, state = await saved.load(10)
        assert as_bytes(state) == as_bytes(stage.state)
        for array in (tmp_path / "shared").rglob("params*/0*"):
            array.write_bytes(bytes(array.stat().st_size))
        with pytest.raises(CheckpointError, match="own.*shared"):
            await saved.load(10)

    asyncio.run(scenario())


def test_saving_is_done_by_a_thread_of_its_own_one_at_a_time(
    make_saved, stage, tmp_path
):
    async def scenario():
        slow = SlowFolder(tmp_path / "slow")
        saved = make_saved(own=slow)

        def save(step):
            return saved.save(position_at(step), stage.state, to_shared=True)

        first = asyncio.create_task(save(10))
        await asyncio.to_thread(slow.begun.wait)
        with pytest.raises(CheckpointError, match="busy"):
            await save(20)
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
        saved = make_saved(own=slow)
        first = asyncio.create_task(
            saved.save(position_at(10), stage.state, to_shared=False)
        )
        await asyncio.to_thread(slow.begun.wait)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(CheckpointError, match="busy"):
            await saved.save(position_at(20), stage.state, to_shared=False)
        slow.let_on.set()
        saved.close()
        assert len(list((tmp_path / "slow" / "step_00000010").iterdir())) == 2

    asyncio.run(scenario())


def test_a_failed_save_does_not_keep_the_next_one_out(make_saved, stage, tmp_path):
    async def scenario():
        saved = make_saved("own")
        (tmp_path / "own").write_text("in the way")
        with pytest.raises(CheckpointError, match="was not saved"):
            await checkpoint(saved, stage, 10)
        (tmp_path / "own").unlink()
        await checkpoint(saved, stage, 20)
        assert saved.steps() == [20]

    asyncio.run(scenario())


def test_its_own_disk_does_not_hold_up_the_swarms_checkpoint(
    make_saved, stage, tmp_path, caplog
):
    async def scenario():
        saved = make_saved("own", "shared")
        (tmp_path / "own").write_text("in the way")
        digest = await saved.save(position_at(10), stage.state, to_shared=True)
        assert "was not saved" in caplog.text
        (tmp_path / "own").unlink()
        await saved.complete(10, 2, {0: digest}, {})
        assert saved.steps() == [10] and make_saved("own").steps() == []

    asyncio.run(scenario())


def test_a_folder_that_cannot_be_marked_does_not_hold_up_the_other(
    make_saved, stage, tmp_path
):
    async def scenario():
        saved = make_saved("own", "shared")
        digest = await saved.save(position_at(10), stage.state, to_shared=True)
        (tmp_path / "own/step_00000010/complete.json").mkdir()
        with pytest.raises(CheckpointError, match="own"):
            await saved.complete(10, 2, {0: digest}, {})
        assert make_saved("shared").steps() == [10]

    asyncio.run(scenario())


def test_what_others_complete_is_seen_when_looked_for(make_saved, stage):
    async def scenario():
        ours, theirs = make_saved("shared"), make_saved("shared")
        await checkpoint(theirs, stage, 10)
        assert ours.steps() == []
        await ours.refresh()
        assert ours.steps() == [10]

    asyncio.run(scenario())


def test_another_experiments_folder_is_refused_at_once(make_saved, stage, tmp_path):
    async def scenario():
        await checkpoint(make_saved("shared"), stage, 10)
        theirs = CheckpointFolder(tmp_path / "shared", model_fingerprint="theirs")
        with pytest.raises(CheckpointError, match="another experiment"):
            make_saved(shared=theirs)

    asyncio.run(scenario())
