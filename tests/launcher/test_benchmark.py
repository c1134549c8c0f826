"""Measuring two ways to train in turn, over a stand-in for both."""

import io

import pytest
from rich.console import Console

from swarm_jax.launcher.benchmark import measure, report_table, swarm_against_single
from swarm_jax.launcher.processes import ProcessDied

TRAINING = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
if "--fail" in sys.argv:
    sys.exit("out of memory")
(folder / "metrics").mkdir(parents=True)
lines = [
    {"step": s, "train_loss": 1.0, "tokens": 100, "step_s": 9.0 if s <= 3 else STEP_S}
    for s in range(1, 6)
]
text = "".join(json.dumps(line) + "\\n" for line in lines)
(folder / "metrics" / "trainer.jsonl").write_text(text)
"""


@pytest.fixture(autouse=True)
def stand_ins(tmp_path, monkeypatch):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name, step_s in (("__init__", ""), ("launch", "0.2"), ("train_single", "0.1")):
        text = TRAINING.replace("STEP_S", step_s) if step_s else ""
        (scripts / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)


def test_both_are_run_in_turn_and_compared(tmp_path):
    console = Console(file=io.StringIO(), width=120)
    report = swarm_against_single(
        ["--config", "x"], "cpu", 2, tmp_path / "runs", console
    )
    assert report["swarm_tokens_per_s"] == pytest.approx([500, 500])
    assert report["single_tokens_per_s"] == pytest.approx([1000, 1000])
    assert report["median_ratio"] == pytest.approx(0.5)
    lines = console.file.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "swarm0",
        "single0",
        "swarm1",
        "single1",
    ]
    console.print(report_table(report))
    assert "without the first 3 steps" in console.file.getvalue()


def test_a_failed_run_tells_its_last_words(tmp_path):
    with pytest.raises(ProcessDied, match="out of memory"):
        measure("swarm0", ["scripts.launch", "--fail"], tmp_path / "runs" / "swarm0")
