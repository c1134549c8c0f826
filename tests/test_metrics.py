"""Run folders: whole lines, whole files, TensorBoard beside them."""

import json

import pytest

from swarm_jax.errors import ConfigError
from swarm_jax.metrics import (
    MetricsWriter,
    TensorBoardWriter,
    make_workdir,
    read_records,
    write_json,
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
