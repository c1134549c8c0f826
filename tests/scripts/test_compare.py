"""scripts.compare: the table, the picture, and folders that are no runs."""

import json
import re

import pytest

from scripts import compare
from swarm_jax.errors import ConfigError
from swarm_jax.launcher.compare import largest_difference, matching_steps
from swarm_jax.launcher.runs import load_run


@pytest.fixture
def make_run(tmp_path):
    """Writes a run whose losses are given by step; its steps take ``step_s``."""

    def make(name, losses, step_s=0.5, validation=(), skipped=()):
        folder = tmp_path / name
        (folder / "metrics").mkdir(parents=True)
        with (folder / "metrics" / "trainer.jsonl").open("w") as file:
            for step, loss in losses.items():
                record = {"step": step, "train_loss": loss, "tokens": 100}
                # The first three steps compile.
                record["step_s"] = 60.0 if step <= 3 else step_s
                if step in validation:
                    record["validation_loss"] = loss + 1
                if step in skipped:
                    record = {"step": step, "skipped": True}
                file.write(json.dumps(record) + "\n")
        return folder

    return make


def rows(output):
    """Cells of each row of a printed table by the row's first cell."""
    table = [re.split("\\s*[\u2502\u2503]\\s*", line) for line in output.splitlines()]
    return {cells[1]: cells[2:-1] for cells in table if len(cells) > 3}


def test_table_and_picture(make_run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "400")
    swarm = make_run("swarm", {s: 5 - s / 100 for s in range(1, 101)}, 0.2, [50, 100])
    single = make_run("single", {s: 5 - s / 100 for s in range(1, 91)}, 0.1)
    odd = make_run("odd", {s: 5 - s / 100 + (s == 7) / 4 for s in range(1, 101)})
    picture = tmp_path / "new" / "curves.png"
    compare.main([*map(str, (swarm, single, odd)), "--output", str(picture)])
    found = rows(capsys.readouterr().out)
    assert found["train loss, step 1"] == ["4.990000"] * 3
    assert found["train loss, step 90"] == ["4.100000"] * 3
    assert sum(name.startswith("train loss") for name in found) == 10
    assert found["largest difference"] == [
        "-",
        "0.00e+00 at step 1",
        "2.50e-01 at step 7",
    ]
    assert found["tokens/s after step 3"] == ["500", "1,000", "200"]
    assert found["validation loss"] == ["5.0000 at step 100", "-", "-"]
    assert found["last step"] == ["100", "90", "100"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_picture_goes_to_the_first_run_unless_told_otherwise(make_run, capsys):
    first, second = make_run("a", {1: 2.0}), make_run("b", {1: 2.0})
    compare.main([str(first), str(second)])
    assert (first / "compare.png").exists()
    assert str(first / "compare.png") in capsys.readouterr().out


def test_runs_without_a_common_step_are_shown_all_the_same(make_run):
    first = load_run(make_run("a", {1: 2.0, 2: 1.0}))
    second = load_run(make_run("b", {3: 2.0}))
    assert matching_steps([first, second]) == []
    assert largest_difference(first, second) is None


def test_skipped_steps_are_left_out(make_run):
    run = load_run(make_run("a", {1: 2.0, 2: 1.5, 3: 1.0}, skipped=[2]))
    assert run.losses == {1: 2.0, 3: 1.0}


def test_a_short_run_is_timed_by_its_last_step(make_run):
    assert load_run(make_run("a", {1: 2.0, 2: 1.5})).tokens_per_s == 100 / 60


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "is no run folder"), ("empty", "no step yet")]
)
def test_a_folder_without_metrics_is_named(make_run, tmp_path, name, message):
    make_run("empty", {})
    with pytest.raises(ConfigError, match=message):
        compare.main([str(tmp_path / name)])
