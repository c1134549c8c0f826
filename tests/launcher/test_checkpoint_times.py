"""What saving and moving cost, measured over stand-ins for the swarm."""

import io

import pytest
from rich.console import Console

from swarm_jax.launcher import checkpoint_times
from swarm_jax.launcher.checkpoint_times import (
    migrations,
    save_stall,
    saves_in,
    times_table,
)
from swarm_jax.launcher.processes import ProcessDied

LAUNCH = """
import json, pathlib, sys, time
arguments = sys.argv
folder = pathlib.Path(arguments[arguments.index("--workdir") + 1])
(folder / "metrics").mkdir(parents=True)
(folder / "logs").mkdir()
saves = "--config.checkpoint.every_steps=1" in arguments
lines = [
    {"step": s, "train_loss": 1.0, "tokens": 100, "step_s": 0.22 if saves else 0.2}
    for s in range(1, 6)
]
text = "".join(json.dumps(line) + "\\n" for line in lines)
(folder / "bootstrap.json").write_text('{"initial_peers": ["/ip4/1.2.3.4"]}')
(folder / "metrics" / "trainer.jsonl").write_text(text)
log = "saved step 1 in 0.50 s\\nsaved step 3 in 0.70 s\\n" if saves else ""
(folder / "logs" / "trainer.log").write_text(log)
if "--config.steps=1000000" in arguments:
    time.sleep(600)
"""

MIGRATE = """
import json, pathlib, sys
arguments = sys.argv
folder = pathlib.Path("runs/moving/metrics")
if "--refuse" in arguments:
    sys.exit("is the only peer")
stage = arguments[arguments.index("--stage") + 1]
assert arguments[arguments.index("--initial_peers") + 1] == "/ip4/1.2.3.4"
move = {"migration_s": 3.0, "migration_drain_s": 0.5, "migration_prepare_s": 1.0}
move |= {"migration_state_s": 1.0, "migration_first_microbatch_s": 0.5}
with (folder / "stage0-1.jsonl").open("a") as file:
    file.write(json.dumps({"step": 3}) + "\\n")
    file.write(json.dumps({"migrated_from_stage": 1 - int(stage), **move}) + "\\n")
"""

STORE = {"state_mb": 100, "save_mb_per_s": [200.0], "restore_mb_per_s": [300.0]}


@pytest.fixture(autouse=True)
def stand_ins(tmp_path, monkeypatch):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name, text in (("__init__", ""), ("launch", LAUNCH), ("migrate", MIGRATE)):
        (scripts / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint_times, "POLL_S", 0.01)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120)


def test_a_swarm_that_saves_is_compared_with_one_that_does_not(tmp_path, console):
    found = save_stall(["--config", "x"], "cpu", 2, 100, tmp_path / "runs", console)
    assert found["saving_step_s"] == pytest.approx([0.22, 0.22])
    assert found["plain_step_s"] == pytest.approx([0.2, 0.2])
    assert found["median_stall_share"] == pytest.approx(0.1)
    assert (found["saves"], found["median_save_s"]) == (4, pytest.approx(0.6))


def test_each_move_is_told_by_its_parts(tmp_path, console):
    moves = migrations(["--config", "x"], "cpu", 3, tmp_path / "runs", console)
    assert [move["migrated_from_stage"] for move in moves] == [0, 1, 0]
    assert all(move["migration_s"] == 3.0 for move in moves)
    stall = save_stall(["--config", "x"], "cpu", 1, 100, tmp_path / "stall", console)
    report = {"stall": stall, "store": [STORE], "migrations": moves}
    console.print(times_table(report))
    shown = console.file.getvalue()
    for label in ("added while saving", "save 100 MB", "drain", "first microbatch"):
        assert label in shown, label


def test_a_refused_move_tells_its_reason(tmp_path, console):
    with pytest.raises(ProcessDied, match="is the only peer"):
        migrations(["--refuse"], "cpu", 1, tmp_path / "runs", console)


def test_a_swarm_that_dies_ends_the_measurement(tmp_path, console):
    (tmp_path / "scripts" / "launch.py").write_text("import sys; sys.exit('no room')")
    with pytest.raises(ProcessDied, match="no room"):
        migrations([], "cpu", 1, tmp_path / "runs", console)


def test_a_log_without_saves_has_none(tmp_path):
    (tmp_path / "trainer.log").write_text("closed step 1\n")
    assert saves_in(tmp_path / "trainer.log") == []
