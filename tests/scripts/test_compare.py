"""scripts.compare: table, report, picture, and what it cannot compare."""

import json
import re

import pytest

from scripts import compare
from swarm_jax.errors import ConfigError
from swarm_jax.launcher import systems
from swarm_jax.launcher.compare import common_tokens, largest_difference
from swarm_jax.launcher.runs import load_run
from swarm_jax.metrics import MetricsWriter


@pytest.fixture
def make_run(tmp_path):
    """Writes a run whose losses are given by step; its steps take ``step_s``."""

    def make(name, losses, step_s=0.5, validation=(), skipped=(), tokens=100):
        folder = tmp_path / name
        (folder / "metrics").mkdir(parents=True)
        with (folder / "metrics" / "trainer.jsonl").open("w") as file:
            for step, loss in losses.items():
                record = {"step": step, "train_loss": loss, "tokens": tokens}
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
    report = tmp_path / "report.json"
    arguments = ["--plot", str(picture), "--json", str(report)]
    assert compare.main([*map(str, (swarm, single, odd)), *arguments]) == 0
    found = rows(capsys.readouterr().out)
    assert found["train loss after 100 tokens"] == ["4.990000"] * 3
    assert found["train loss after 9,000 tokens"] == ["4.100000"] * 3
    assert sum(name.startswith("train loss") for name in found) == 10
    assert found["largest difference"] == [
        "-",
        "0.00e+00 after 100 tokens",
        "2.50e-01 after 700 tokens",
    ]
    assert found["tokens/s after step 3"] == ["500", "1,000", "200"]
    assert found["validation loss"] == ["5.0000 after 10,000 tokens", "-", "-"]
    assert found["last step"] == ["100", "90", "100"]
    assert found[""] == ["swarm", "single", "odd"]
    assert found["experiment"] == ["-"] * 3
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = json.loads(report.read_text())
    assert [run["tokens_per_s"] for run in told["runs"]] == pytest.approx(
        [500, 1000, 200]
    )
    assert told["runs"][0]["largest_difference"] is None
    assert told["runs"][2]["largest_difference"] == pytest.approx(0.25)
    assert told["runs"][2]["largest_difference_after_tokens"] == 700
    assert told["runs"][0]["validation_losses"][1] == {"tokens": 10_000, "loss": 5.0}
    assert told["train_losses"][89]["tokens"] == 9_000
    assert told["train_losses"][89]["losses"] == pytest.approx([4.1] * 3)
    assert len(told["train_losses"]) == 90


def test_the_picture_goes_to_the_first_run_unless_told_otherwise(make_run, capsys):
    first, second = make_run("a", {1: 2.0}), make_run("b", {1: 2.0})
    compare.main([str(first), str(second)])
    assert (first / "compare.png").exists()
    assert str(first / "compare.png") in capsys.readouterr().out


def test_runs_without_tokens_in_common_are_shown_all_the_same(make_run, capsys):
    folders = make_run("a", {1: 2.0, 2: 1.0}), make_run("b", {1: 2.0}, tokens=300)
    first, second = map(load_run, folders)
    assert common_tokens([first, second]) == []
    assert largest_difference(first, second) is None
    compare.main([*map(str, folders)])
    assert "no tokens in common" in capsys.readouterr().out


def test_folders_are_named_in_full_where_their_parents_differ(
    make_run, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "400")
    folders = [str(make_run(name, {1: 2.0})) for name in ("a/run", "b/run")]
    compare.main(folders)
    assert rows(capsys.readouterr().out)[""] == folders


def test_steps_of_other_sizes_are_compared_after_equal_tokens(make_run):
    small = load_run(make_run("small", {1: 4.0, 2: 3.0, 3: 2.5, 4: 2.0}))
    large = load_run(make_run("large", {1: 3.0, 2: 2.25}, tokens=200))
    assert common_tokens([small, large]) == [200, 300, 400]
    # After 300 tokens the large steps are half way from 3.0 to 2.25.
    assert large.loss_after(300) == pytest.approx(2.625)
    assert largest_difference(small, large) == (0.25, 400)


def test_a_step_that_was_taken_without_a_record_has_its_tokens_counted(make_run):
    run = load_run(make_run("a", {1: 4.0, 3: 2.0}))
    assert run.tokens == {1: 100, 3: 300}


def test_a_step_that_was_taken_again_counts_once(make_run):
    folder = make_run("a", {1: 4.0, 2: 3.0})
    again = MetricsWriter(folder / "metrics" / "trainer.jsonl")
    again.write(step=1, train_loss=5.0, tokens=100, step_s=1.0)
    again.close()
    run = load_run(folder)
    assert run.losses == {1: 5.0, 2: 3.0}
    assert run.tokens == {1: 100, 2: 200}


def test_memory_is_that_of_all_processes_and_of_the_largest(
    make_run, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "400")
    swarm, single = make_run("swarm", {1: 2.0}), make_run("single", {1: 2.0})
    for peer, megabytes in (("stage0-0", (300, 400)), ("stage1-0", (250, 200))):
        writer = MetricsWriter(swarm / "metrics" / f"{peer}.jsonl")
        for step, amount in enumerate(megabytes, start=1):
            rss, device = int(amount * 1e6), int(amount * 1e5)
            writer.write(step=step, peak_rss_bytes=rss, peak_device_bytes=device)
        writer.close()
    compare.main([str(swarm), str(single)])
    found = rows(capsys.readouterr().out)
    assert found["processes"] == ["2", "-"]
    assert found["peak memory, largest process"] == ["400 MB", "-"]
    assert found["peak device memory, largest process"] == ["40 MB", "-"]
    memory = load_run(swarm).memory
    assert memory.total_peak_rss_bytes == 650_000_000
    assert memory.total_peak_device_bytes == 65_000_000


def test_skipped_steps_are_left_out(make_run):
    run = load_run(make_run("a", {1: 2.0, 2: 1.5, 3: 1.0}, skipped=[2]))
    assert run.losses == {1: 2.0, 3: 1.0}
    assert run.tokens == {1: 100, 2: 100, 3: 200}


def test_a_short_run_is_timed_by_its_last_step(make_run):
    assert load_run(make_run("a", {1: 2.0, 2: 1.5})).tokens_per_s == 100 / 60


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "is no run folder"), ("empty", "no step yet")]
)
def test_a_folder_without_metrics_is_named(make_run, tmp_path, name, message):
    make_run("empty", {})
    with pytest.raises(ConfigError, match=message):
        compare.main([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to compare"),
        (["--run", "x"], "go together"),
        (["x", "--config", "configs/tiny.py"], "go together"),
        (["x", "--config.seed=1"], "go together"),
        (["--run", "x", "--config", "configs/none.py"], "No config file"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        compare.main(arguments)


def test_three_systems_train_the_same_experiment(
    make_run, tmp_path, monkeypatch, capsys
):
    """Over a stand-in: each system is started as its users start it elsewhere."""
    monkeypatch.setenv("COLUMNS", "400")
    commands = {}

    def measure(name, command, workdir):
        commands[name] = command
        make_run(workdir.relative_to(tmp_path), {1: 2.0, 2: 1.0})
        return 1234.0

    monkeypatch.setattr(systems, "measure", measure)
    folder = tmp_path / "new"
    arguments = ["--run", str(folder), "--config", "configs/tiny.py"]
    compare.main([*arguments, "--config.steps=30", "--peers-per-stage", "1"])
    assert [command[0] for command in commands.values()] == [
        "scripts.launch",
        "scripts.train_single",
        "scripts.train_pytorch",
    ]
    for name, command in commands.items():
        assert command[1:6] == [
            *("--config", "configs/tiny.py", "--config.steps=30", "--device", "cpu")
        ]
        assert ("--peers-per-stage" in command) == (name == "swarm")
    printed = capsys.readouterr().out
    assert "pytorch: 1,234 tokens/s" in printed
    assert rows(printed)["train loss after 200 tokens"] == ["1.000000"] * 3
    assert (folder / "swarm" / "compare.png").exists()
    with pytest.raises(ConfigError, match="swarm is there already"):
        compare.main(arguments)
