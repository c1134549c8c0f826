"""Checkpoints in a folder: round trips, damage, keeping, several writers."""

import contextlib
import itertools
import json
import resource
import shutil
import threading
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from models.config import GPTConfig
from models.functional import from_layers, make_stage, to_layers
from swarm_jax.errors import CheckpointError
from swarm_jax.stage.checkpoints import CheckpointFolder, kept_steps, load_params
from swarm_jax.stage.manifests import Saved

STAGES = ("embed", "layers.0"), ("layers.1",), ("layers.2", "head")
NAMES = [name for names in STAGES for name in names]


ARRAYS = "params/kernel", "opt_state/0/mu/kernel"


def make_layer(name, seed=0, arrays=ARRAYS):
    generator = np.random.default_rng((seed, *name.encode()))
    return {array: generator.normal(size=(4, 3)).astype(np.float32) for array in arrays}


def shared_of(step):
    return {"opt_state/0/count": np.asarray(step, np.int32)}


def saved_at(step, stage=0, generation=0):
    return Saved(step, generation, f"lineage of {stage}", (step - 1, 0.5))


@pytest.fixture
def make_folder(tmp_path):
    def make(**options):
        return CheckpointFolder(
            options.pop("root", tmp_path / "checkpoints"),
            **{"model_fingerprint": "ours", **options},
        )

    return make


def save(folder, step, stages=range(3), seed=0, arrays=ARRAYS):
    """The digests, by stage."""
    return {
        stage: folder.save(
            stage,
            3,
            saved_at(step, stage),
            {name: make_layer(name, seed, arrays) for name in STAGES[stage]},
            shared_of(step),
        )
        for stage in stages
    }


def complete(folder, step, digests, generation=0):
    folder.complete(
        step, generation, digests, config={"seed": 1}, summary={"loss": 2.5}
    )


def checkpoint(folder, step, **options):
    digests = save(folder, step, **options)
    complete(folder, step, digests)
    return digests


def as_bytes(layers):
    return {
        (layer, name): (array.dtype, array.shape, array.tobytes())
        for layer, arrays in layers.items()
        for name, array in arrays.items()
    }


def expected(names, seed=0):
    return as_bytes({name: make_layer(name, seed) for name in names})


def files_of(folder):
    return sorted(path for path in Path(folder.root).rglob("*") if path.is_file())


def test_what_is_saved_is_restored_bit_for_bit(make_folder):
    nan = np.array([0x7FC00001, 0x80000000, 0x00000001], np.uint32).view(np.float32)
    layers = {
        "embed": {
            "params/odd": nan,
            "params/half": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
            "opt_state/0/mu/double": np.array([[np.pi, -0.0, np.inf]]),
            "opt_state/0/nu/scalar": np.asarray(1.5, np.float32),
            "opt_state/0/nu/whole": np.arange(3, dtype=np.int32),
        },
        # As they come: a slice that is not contiguous, a leaf that is all there is.
        "layers.0": {"params": np.arange(24.0).reshape(4, 6)[:, ::2]},
    }
    shared = {"opt_state/1/count": np.asarray(7, np.int32)}
    saved = Saved(12, 3, "a1b2", (11, 0.1 + 0.2))
    folder = make_folder()
    digest = folder.save(0, 1, saved, layers, shared)
    complete(folder, 12, {0: digest}, generation=3)
    found_saved, found_layers, found_shared = make_folder().load(12, list(layers))
    assert found_saved == saved
    assert as_bytes(found_layers) == as_bytes(layers)
    assert as_bytes({"": found_shared}) == as_bytes({"": shared})


@pytest.mark.parametrize("last_commit", [None, (9, None)])
def test_a_skipped_step_and_none_at_all_are_remembered(last_commit, make_folder):
    folder, saved = make_folder(), Saved(10, 0, "", last_commit)
    digest = folder.save(0, 1, saved, {"embed": make_layer("embed")}, {})
    complete(folder, 10, {0: digest})
    assert folder.load(10, ["embed"])[0] == saved


def test_a_step_is_there_when_it_is_marked(make_folder):
    folder = make_folder()
    assert folder.steps() == []
    digests = save(folder, 10)
    assert folder.steps() == []
    with pytest.raises(CheckpointError, match="not complete"):
        folder.load(10, NAMES)
    complete(folder, 10, digests)
    assert make_folder().steps() == [10]
    assert all(folder.holds(10, digests, stage) for stage in digests)
    assert not folder.holds(10, digests | {1: digests[0]}, 1)
    assert not folder.holds(11, digests, 1)
    assert not folder.holds(10, digests, 3)


def test_a_step_that_lacks_a_stage_is_not_there(make_folder):
    folder = make_folder()
    complete(folder, 10, save(folder, 10, stages=(0, 1)) | {2: "0" * 64})
    assert folder.steps() == []
    with pytest.raises(CheckpointError, match="layers.2, head not there"):
        folder.load(10, NAMES)


def test_a_folder_may_hold_one_stage_alone(make_folder, tmp_path):
    everywhere, own = make_folder(), make_folder(root=tmp_path / "own")
    digests = save(everywhere, 10)
    assert save(own, 10, stages=[1]) == {1: digests[1]}
    complete(own, 10, digests)
    assert own.steps() == [] and own.steps(STAGES[1]) == [10]
    saved, layers, _ = own.load(10, STAGES[1])
    assert saved == saved_at(10, 1) and as_bytes(layers) == expected(STAGES[1])
    with pytest.raises(CheckpointError, match="embed"):
        own.load(10, STAGES[0])


def test_nothing_is_marked_where_nothing_is_held(make_folder, tmp_path):
    own = make_folder(root=tmp_path / "own")
    complete(own, 10, save(make_folder(), 10))
    assert not own.root.exists()


def test_other_partitions_get_the_same_bytes_and_agree_on_a_lineage(make_folder):
    folder = make_folder()
    checkpoint(folder, 10)
    for count in range(1, len(NAMES) + 1):
        for names in itertools.combinations(NAMES, count):
            saved, layers, shared = folder.load(10, names)
            assert as_bytes(layers) == expected(names)
            assert shared == shared_of(10)
            assert saved == make_folder().load(10, names[::-1])[0]
            if names in STAGES:
                assert saved == saved_at(10, STAGES.index(names))
            else:
                assert not saved.lineage.startswith("lineage of")
                assert (saved.step, saved.last_commit) == (10, (9, 0.5))
    lineages = [folder.load(10, [name])[0].lineage for name in NAMES]
    assert len(set(lineages)) == len(NAMES)


def test_stages_that_have_not_committed_the_same_are_not_joined(make_folder):
    folder = make_folder()
    digests = save(folder, 10, stages=(0, 1))
    layers = {name: make_layer(name) for name in STAGES[2]}
    digests[2] = folder.save(2, 3, saved_at(10, 2), layers, shared_of(9))
    complete(folder, 10, digests)
    folder.load(10, STAGES[2])
    with pytest.raises(CheckpointError, match="stages 0 and 2 do not agree"):
        folder.load(10, NAMES)


def test_equal_parameters_have_equal_digests_whoever_saves_them(make_folder, tmp_path):
    one, other = make_folder(), make_folder(root=tmp_path / "other")
    assert save(one, 10) == save(other, 10) != save(other, 10, seed=1)


def test_parameters_of_the_whole_model(make_folder):
    config = GPTConfig(
        num_layers=3,
        model_dim=8,
        num_heads=2,
        ffn_dim=16,
        vocab_size=11,
        sequence_length=5,
    )
    params = jax.device_get(make_stage(config, 0, 3).init(5))
    folder, digests = make_folder(), {}
    for stage, names in enumerate(STAGES):
        layers = {}
        for name in names:
            flat = jax.tree.leaves_with_path(to_layers(params, 0)[name])
            arrays = {
                jax.tree_util.keystr(path, simple=True, separator="/"): leaf
                for path, leaf in flat
            }
            layers[name] = {f"params/{name}": leaf for name, leaf in arrays.items()}
            layers[name] |= {f"opt_state/0/mu/{n}": 2 * a for n, a in arrays.items()}
        digests[stage] = folder.save(stage, 3, saved_at(10), layers, {})
    complete(folder, 10, digests)
    layers, read_config = load_params(folder.root)
    assert read_config == {"seed": 1}
    restored = from_layers(layers)
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    for array in Path(folder.root).rglob("opt_state*/0*"):
        array.write_bytes(b"")
    load_params(folder.root, 10)
    with pytest.raises(CheckpointError, match="step 11"):
        load_params(folder.root, 11)


def test_parameters_of_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        load_params(tmp_path)


def damages(content):
    """Other contents: a bit flipped at either end and in the middle; cut off."""
    for position in {0, len(content) // 2, len(content) - 1} if content else ():
        damaged = bytearray(content)
        damaged[position] ^= 1
        yield bytes(damaged)
    yield content[: len(content) // 2]
    yield b""


def test_no_damage_of_any_file_gives_other_values(make_folder):
    """One array a layer: of several, Orbax would still be reading when one fails."""
    folder = make_folder()
    for step in (10, 20):
        checkpoint(folder, step, arrays=["params/kernel"])
    right, refused = folder.load(20, NAMES), set()
    for file in files_of(folder):
        if "step_00000020" not in file.parts:
            continue
        content = file.read_bytes()
        for damaged in damages(content):
            file.write_bytes(damaged)
            try:
                found = folder.load(20, NAMES)
            except CheckpointError as error:
                assert "Step 10 is there" in str(error)
                refused.add(file)
            else:
                assert found[0] == right[0] and found[2] == right[2]
                assert as_bytes(found[1]) == as_bytes(right[1])
        file.unlink()
        try:
            assert as_bytes(folder.load(20, NAMES)[1]) == as_bytes(right[1])
        except CheckpointError:
            refused.add(file)
        file.write_bytes(content)
        folder.load(20, NAMES)
    arrays = {path for path in files_of(folder) if path.name == "0.0"}
    ours = {path for path in files_of(folder) if path.suffix == ".json"}
    assert {path for path in arrays | ours if "step_00000020" in path.parts} <= refused


def test_a_log_has_nothing_of_saves_that_went_well(make_folder, caplog):
    """Orbax has a dozen lines for each layer and save."""
    save(make_folder(), 10)
    with caplog.at_level("INFO"):
        checkpoint(make_folder(), 20)
        make_folder().load(20, NAMES)
    assert caplog.records == []


def test_a_damaged_manifest_hides_its_step_but_no_other(make_folder, caplog):
    folder = make_folder()
    checkpoint(folder, 10)
    digests = checkpoint(folder, 20)
    (manifest,) = folder.root.glob(f"step_00000020/stage_1.{digests[1]}.json")
    manifest.write_text(manifest.read_text().replace("lineage of 1", "lineage of 2"))
    assert folder.steps() == [10] and not folder.holds(20, digests, 1)
    assert str(manifest) in caplog.text
    checkpoint(folder, 20)
    assert folder.steps() == [10, 20]


def test_a_part_of_another_generation_is_refused(make_folder):
    folder = make_folder()
    complete(folder, 10, save(folder, 10), generation=1)
    with pytest.raises(CheckpointError, match="generation 0"):
        folder.load(10, NAMES)


def test_checkpoints_of_another_experiment_are_refused(make_folder):
    checkpoint(make_folder(), 10)
    theirs = make_folder(model_fingerprint="theirs")
    for refused in (theirs.steps, lambda: theirs.load(10, NAMES)):
        with pytest.raises(CheckpointError, match="another experiment.*complete.json"):
            refused()
    with pytest.raises(CheckpointError, match="another experiment"):
        checkpoint(theirs, 20)
    assert make_folder().steps() == [10]
    marker = json.loads((theirs.root / "step_00000010/complete.json").read_text())
    assert marker["config"] == {"seed": 1} and marker["summary"] == {"loss": 2.5}


@pytest.mark.parametrize(
    ("keep_last", "keep_every_steps", "kept"),
    [
        (1, 0, {60}),
        (3, 0, {40, 50, 60}),
        (9, 0, {10, 20, 30, 40, 50, 60}),
        (1, 20, {20, 40, 60}),
        (2, 30, {30, 50, 60}),
        (1, 7, {60}),
    ],
)
def test_which_are_kept(keep_last, keep_every_steps, kept):
    complete = [10, 20, 30, 40, 50, 60]
    assert kept_steps(complete, keep_last, keep_every_steps) == kept
    # Imported parameters are kept, too: no seed makes them again.
    assert kept_steps([0, *complete], keep_last, keep_every_steps) == {0} | kept


def test_the_newest_are_kept_and_those_of_round_steps(make_folder):
    folder = make_folder(keep_last=2, keep_every_steps=20)
    for step in (10, 20, 30, 40, 50):
        checkpoint(folder, step)
    assert folder.steps() == [20, 40, 50]
    assert len(list(folder.root.iterdir())) == 3


def test_leavings_go_when_a_later_step_is_complete(make_folder):
    folder = make_folder(keep_last=2)
    checkpoint(folder, 10)
    save(folder, 10, seed=1)
    save(folder, 15)
    save(folder, 20, seed=1)
    save(folder, 30, stages=[1])
    checkpoint(folder, 20)
    left = sorted(path.name for path in folder.root.iterdir())
    assert left == ["step_00000010", "step_00000020", "step_00000030"]
    assert len(list((folder.root / left[0]).iterdir())) == 7
    assert len(list((folder.root / left[1]).iterdir())) == 13
    assert folder.steps() == [10, 20]
    for step, seed in ((10, 0), (20, 0)):
        assert as_bytes(folder.load(step, NAMES)[1]) == expected(NAMES, seed)


def test_what_lacks_the_newest_steps_layers_does_not_count_as_kept(make_folder):
    own = make_folder(keep_last=2)
    others = {stage: "0" * 64 for stage in range(3)}
    for step, stage in ((10, 1), (20, 1), (30, 0), (40, 1), (50, 1)):
        complete(own, step, others | save(own, step, stages=[stage]))
    assert own.steps(STAGES[1]) == [40, 50] and own.steps(STAGES[0]) == []


def test_a_step_that_is_run_again_takes_the_place_of_what_it_was(make_folder):
    folder = make_folder(keep_last=1)
    for step in (10, 20):
        checkpoint(folder, step)
    checkpoint(folder, 15, seed=1)
    assert folder.steps() == [15, 20]
    checkpoint(folder, 20, seed=1)
    assert folder.steps() == [20]
    assert as_bytes(folder.load(20, NAMES)[1]) == expected(NAMES, seed=1)


def test_two_writers_of_one_stage_never_mix(make_folder):
    ours, theirs = make_folder(), make_folder()
    other = save(ours, 10, stages=(0, 2))
    digests = [None, None]

    def write(index, folder):
        for _ in range(5):
            digests[index] = save(folder, 10, stages=[1], seed=index)

    threads = [
        threading.Thread(target=write, args=pair) for pair in enumerate((ours, theirs))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in (0, 1, 0):
        complete(ours, 10, other | digests[index])
        found = theirs.load(10, STAGES[1])[1]
        assert as_bytes(found) == expected(STAGES[1], seed=index)


def test_writers_of_all_stages_complete_and_prune_at_once(make_folder):
    folders = [make_folder(keep_last=2) for _ in STAGES]
    digests, failures = {}, []
    together = threading.Barrier(len(STAGES), timeout=60)

    def write(stage, folder):
        try:
            for step in range(10, 60, 10):
                digests.update(save(folder, step, stages=[stage]))
                together.wait()
                complete(folder, step, digests)
                together.wait()
        except Exception as failure:
            failures.append(failure)
            together.abort()

    threads = [threading.Thread(target=write, args=pair) for pair in enumerate(folders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert folders[0].steps() == [40, 50]
    for step in (40, 50):
        assert as_bytes(folders[0].load(step, NAMES)[1]) == expected(NAMES)


def test_a_marker_comes_to_every_writer(make_folder):
    ours, theirs = make_folder(keep_last=1), make_folder(keep_last=1)
    checkpoint(ours, 10)
    digests = save(ours, 20, stages=(0, 1)) | save(theirs, 20, stages=[2])
    for folder in (ours, theirs, ours):
        complete(folder, 20, digests)
        assert folder.steps() == [20]


def test_a_full_disk_fails_the_save_and_leaves_nothing(make_folder):
    folder = make_folder()
    checkpoint(folder, 10)
    large = {"embed": {"params/kernel": np.ones(2**19, np.float32)}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="there is room"):
            folder.save(0, 1, saved_at(20), large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((folder.root / "step_00000020").iterdir()) == []
    complete(folder, 20, {0: folder.save(0, 1, saved_at(20), large, {})})
    assert folder.steps() == [10, 20]


def test_a_place_that_cannot_be_written_to_is_named(make_folder, tmp_path):
    (tmp_path / "file").write_text("")
    folder = make_folder(root=tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError, match=str(folder.root)):
        save(folder, 10)
    with pytest.raises(CheckpointError, match="cannot be read"):
        make_folder(root=tmp_path / "file").steps()


def test_a_folder_that_is_gone_is_an_error_and_no_obstacle(make_folder):
    folder = make_folder()
    checkpoint(folder, 10)
    shutil.rmtree(folder.root)
    assert folder.steps() == []
    with pytest.raises(CheckpointError, match="No older one is there"):
        folder.load(10, NAMES)
    checkpoint(folder, 20)
    assert folder.steps() == [20]


def test_roots_in_a_bucket_and_below_the_current_folder(make_folder, tmp_path):
    assert str(make_folder(root="gs://bucket/run").root) == "gs://bucket/run"
    with contextlib.chdir(tmp_path):
        folder = make_folder(root="here")
    assert str(folder.root) == str(tmp_path / "here")
    checkpoint(folder, 10)
    assert folder.steps() == [10]


def test_foreign_files_are_left_alone(make_folder):
    folder = make_folder(keep_last=1)
    checkpoint(folder, 10)
    for name in ("notes.txt", "step_notes", "20"):
        (folder.root / name).write_text("mine")
    checkpoint(folder, 20)
    assert folder.steps() == [20]
    assert (folder.root / "step_notes").read_text() == "mine"
