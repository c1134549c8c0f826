"""Run folders: whole lines, whole files, TensorBoard beside them."""

import json
import os
import subprocess

import pytest

from swarm_jax.config import load_config
from swarm_jax.errors import ConfigError
from swarm_jax.metrics import (
    MetricsWriter,
    TensorBoardWriter,
    code_version,
    make_workdir,
    read_records,
    write_json,
    write_run_config,
)


def test_a_line_that_is_still_being_written_is_left(tmp_path):
    path = tmp_path / "metrics" / "trainer.jsonl"
    writer = MetricsWriter(path)
    writer.write(step=1, train_loss=2.5)
    with path.open("a") as file:
        file.write('{"step": 2, "tra')
    assert list(read_records(path)) == [{"step": 1, "train_loss": 2.5}]
    writer.close()


def test_what_is_asked_for_at_each_record_stands_in_it(tmp_path):
    path = tmp_path / "trainer.jsonl"
    memory = iter([{"peak_rss_bytes": 5}, {"peak_rss_bytes": 7}])
    writer = MetricsWriter(path, lambda: next(memory))
    writer.write(step=1)
    writer.write(step=2)
    writer.close()
    assert list(read_records(path)) == [
        {"step": 1, "peak_rss_bytes": 5},
        {"step": 2, "peak_rss_bytes": 7},
    ]


def test_a_json_file_is_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"steps": 1})
    with pytest.raises(TypeError):
        write_json(path, {"steps": object()})
    assert json.loads(path.read_text()) == {"steps": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_workdir_that_cannot_be_written_says_what_to_do(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="Choose another with --workdir"):
        make_workdir(file / "run")


def test_tensorboard_gets_the_numbers_of_each_step(tmp_path):
    lines = MetricsWriter(tmp_path / "trainer.jsonl")
    writer = TensorBoardWriter(lines, tmp_path / "tensorboard")
    writer.write(step=3, train_loss=2.5, note="text")
    writer.close()
    assert list(read_records(tmp_path / "trainer.jsonl"))[0]["note"] == "text"
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train_loss" in events.read_bytes()


@pytest.fixture
def repository(tmp_path):
    """A git repository with one committed file; returns its folder and a command."""
    folder = tmp_path / "code"
    folder.mkdir()
    names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME")
    identity = dict.fromkeys((*names, "GIT_COMMITTER_EMAIL"), "test")

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=os.environ | identity,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    (folder / "file.py").write_text("1\n")
    git("init", "--quiet")
    git("add", "file.py")
    git("commit", "--quiet", "--message", "first")
    return folder, git


def test_the_code_has_a_commit_and_says_when_it_differs(repository):
    folder, git = repository
    commit = git("rev-parse", "HEAD")
    assert code_version(folder) == {"commit": commit, "modified": False}
    (folder / "file.py").write_text("2\n")
    assert code_version(folder) == {"commit": commit, "modified": True}


def test_code_outside_of_git_has_no_commit(tmp_path):
    assert code_version(tmp_path) is None


def test_a_run_says_what_is_run_by_which_code(tmp_path):
    config = load_config("configs/tiny.py")
    write_run_config(tmp_path, config)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["experiment"]["run_id"] == "tiny"
    assert record["model_fingerprint"] == config.model_fingerprint()
    assert {"python", "jax", "orbax-checkpoint", "numpy"} <= record["versions"].keys()
    assert "code" in record
