"""The run folder: who may use it, and what becomes of the run in it."""

import json

import pytest

from models.config import GPTConfig
from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import ConfigError
from swarm_jax.launcher.workdir import how_to_go_on, locked, prepare


def make_config(seed=0):
    model = GPTConfig(
        num_layers=2, model_dim=8, num_heads=2, ffn_dim=16, sequence_length=4
    )
    return ExperimentConfig(run_id="test", seed=seed, steps=9, model=model)


def start(folder, config=None, overwrite=False, may_resume=True):
    return prepare(
        folder, config or make_config(), overwrite=overwrite, may_resume=may_resume
    )


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_steps(folder, *steps, trainer="trainer"):
    lines = "".join(json.dumps({"step": step}) + "\n" for step in steps)
    return write(folder / "metrics" / f"{trainer}.jsonl", lines)


def write_checkpoint(folder, step):
    marker = {"step": step, "model_fingerprint": make_config().model_fingerprint()}
    path = folder / "checkpoints" / f"step_{step:08d}" / "complete.json"
    return write(path, json.dumps(marker))


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_one_run_at_a_time(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(ConfigError, match="in use.*--workdir"):
            with locked(tmp_path / "run"):
                pass
    with locked(tmp_path / "run"):
        pass


def test_a_new_folder_is_a_new_run(tmp_path):
    assert start(tmp_path / "run") == 0


def test_a_run_goes_on_from_its_newest_checkpoint_and_forgets_what_came_after(tmp_path):
    records = write_steps(tmp_path, 1, 2, 3, 4, 5)
    another = write_steps(tmp_path, 4, 5, trainer="trainer-1")
    for step in (2, 4):
        write_checkpoint(tmp_path, step)
    assert start(tmp_path) == 4
    assert steps_in(records) == [1, 2, 3, 4]
    assert steps_in(another) == [4]


def test_a_record_that_was_cut_off_is_forgotten(tmp_path):
    records = write_steps(tmp_path, 1, 2, 3)
    write(records, records.read_text()[:-4])
    write_checkpoint(tmp_path, 3)
    assert start(tmp_path) == 3
    assert steps_in(records) == [1, 2]


def test_what_was_seen_of_the_swarm_before_is_not_shown_again(tmp_path):
    write_steps(tmp_path, 1)
    write_checkpoint(tmp_path, 1)
    stale = [
        write(tmp_path / "bootstrap.json", "{}"),
        write(tmp_path / "metrics" / "swarm.jsonl", "{}\n"),
        write(tmp_path / "metrics" / "swarm-trainer-1.jsonl", "{}\n"),
    ]
    start(tmp_path)
    assert not any(path.exists() for path in stale)


def test_checkpoints_without_records_are_a_run(tmp_path):
    """So they were, unseen, what a new run began with."""
    write_checkpoint(tmp_path, 4)
    assert start(tmp_path) == 4


def test_a_marker_that_is_damaged_is_passed_over(tmp_path):
    write_steps(tmp_path, 1, 2, 3, 4)
    write_checkpoint(tmp_path, 2)
    write(write_checkpoint(tmp_path, 4), '{"step": 4')
    assert start(tmp_path) == 2


@pytest.mark.parametrize("damage", ["[]", "{}", '{"step": 4}'])
def test_a_marker_that_says_nothing_is_passed_over(tmp_path, damage):
    write_checkpoint(tmp_path, 2)
    write(write_checkpoint(tmp_path, 4), damage)
    assert start(tmp_path) == 2


def test_another_experiment_is_refused_and_nothing_is_touched(tmp_path):
    records = write_steps(tmp_path, 1, 2, 3)
    write_checkpoint(tmp_path, 2)
    with pytest.raises(ConfigError, match="another experiment.*seed must be the same"):
        start(tmp_path, make_config(seed=1))
    assert steps_in(records) == [1, 2, 3]


def test_another_number_of_stages_is_the_same_experiment(tmp_path):
    write_steps(tmp_path, 1, 2)
    write_checkpoint(tmp_path, 2)
    config = make_config()
    config.swarm.num_stages = 1
    assert start(tmp_path, config) == 2


def test_a_run_without_a_checkpoint_is_kept(tmp_path):
    records = write_steps(tmp_path, 1, 2)
    with pytest.raises(ConfigError, match="before its first checkpoint.*--overwrite"):
        start(tmp_path)
    assert steps_in(records) == [1, 2]


def test_a_finished_run_is_kept(tmp_path):
    write_steps(tmp_path, 1)
    write_checkpoint(tmp_path, 1)
    write(tmp_path / "summary.json", "{}")
    with pytest.raises(ConfigError, match="finished run"):
        start(tmp_path)


def test_a_run_that_is_measured_does_not_go_on(tmp_path):
    """Times of another process would be among its own."""
    write_steps(tmp_path, 1, trainer="trainer-1")
    write_checkpoint(tmp_path, 1)
    with pytest.raises(ConfigError, match="unfinished run.*--overwrite"):
        start(tmp_path, may_resume=False)


def test_overwriting_removes_the_run_with_its_checkpoints_and_nothing_else(tmp_path):
    records = write_steps(tmp_path, 1)
    marker = write_checkpoint(tmp_path, 1)
    notes = write(tmp_path / "notes.txt", "mine")
    assert start(tmp_path, make_config(seed=1), overwrite=True) == 0
    assert not records.exists()
    assert not marker.parent.exists()
    assert notes.exists()


def test_who_stops_a_run_is_told_how_it_goes_on(tmp_path):
    assert "before the first checkpoint" in how_to_go_on(tmp_path)
    write_checkpoint(tmp_path, 4)
    assert "The same command goes on from step 4" in how_to_go_on(tmp_path)
