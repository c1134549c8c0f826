"""scripts.sweep over a stand-in for the training: results, failures, signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]

TRAINING = '''
"""Its losses are known: 2 + seed / 10, and 1 more for the wide model."""

import os, pathlib, sys, time
from swarm_jax.launcher import flags
from swarm_jax.metrics import SingleRun, write_run_config

parser = flags.Parser()
flags.add_experiment(parser)
flags.add_device(parser)
flags.add_cache_dir(parser)
flags.add_die_with_parent(parser)
parser.add_argument("--workdir", type=pathlib.Path)
parser.add_argument("--simulate_wire", action="store_true")
args = parser.parse_args()
config = flags.experiment(args)
assert args.simulate_wire and args.device == "cpu"
with open("started", "a") as started:
    print(args.workdir.name, file=started)
args.workdir.mkdir(parents=True, exist_ok=True)
deadline_s = time.monotonic() + 60
while len(pathlib.Path("started").read_text().split()) < int(os.environ["TOGETHER"]):
    assert time.monotonic() < deadline_s, "nobody else was started"
    time.sleep(0.02)
if args.workdir.name in os.environ.get("FAILING", "").split(" "):
    sys.exit("out of memory")
write_run_config(args.workdir, config)
run = SingleRun(args.workdir, steps=2)
loss = 2 + config.seed / 10 + (config.model.ffn_dim == 1024)
run.add_step(step=1, step_s=9.0, tokens=100, train_loss=loss + 1)
run.add_step(step=2, step_s=0.5, tokens=100, train_loss=loss, validation_loss=loss / 2)
run.finish(
    parameters=1000 * config.model.ffn_dim,
    activation_bytes_per_token_per_boundary=68.5,
    gradient_bytes_per_token_per_boundary=1024.0,
)
'''

VARY = ("--vary", "model.ffn_dim=512,1024", "--vary", "seed=1,3")
NAMES = [f"ffn_dim={dim},seed={seed}" for dim in (512, 1024) for seed in (1, 3)]


@pytest.fixture
def start(tmp_path):
    """Starts a sweep in a folder where the training is the stand-in."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "__init__.py").touch()
    (scripts / "train_single.py").write_text(TRAINING)

    def start(*arguments, together=1, failing=()):
        return subprocess.Popen(
            [
                *(sys.executable, str(REPOSITORY / "scripts" / "sweep.py")),
                *(str(REPOSITORY / "configs" / "tiny.py"), "--workdir", "sweep"),
                *(*VARY, *arguments),
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "COLUMNS": "40",
                "TOGETHER": str(together),
                "FAILING": " ".join(failing),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture
def sweep(start):
    def sweep(*arguments, **behaviour):
        process = start(*arguments, **behaviour)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    return sweep


def started(folder):
    return (folder / "started").read_text().split()


def rows(output):
    table = [re.split("\\s*\u2502\\s*", line) for line in output.splitlines()]
    return {cells[1]: cells[2:-1] for cells in table if len(cells) > 3}


def test_runs_are_tabulated_by_what_they_vary(sweep, tmp_path):
    code, output = sweep(
        *("--json", "out/a.json", "--markdown", "out/a.md", "--plot", "out/a.png")
    )
    assert code == 0, output
    assert started(tmp_path) == NAMES
    for count, name in enumerate(NAMES, start=1):
        assert f"[{count}/4] {name}" in output
    narrow = ["2", "2.2000 +- 0.1414", "1.1000 +- 0.0707", "200"]
    narrow += ["68.5", "1,024", "512,000"]
    assert rows(output)["ffn_dim=512"] == narrow
    assert rows(output)["ffn_dim=1024"][1] == "3.2000 +- 0.1414"

    figures = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (figures["runner"], figures["parallel"]) == ("single", 1)
    row = figures["rows"][0]
    assert row["train_loss"]["mean"] == pytest.approx(2.2)
    assert row["validation_loss"]["deviation"] == pytest.approx(0.0707, abs=1e-4)
    assert [Path(folder).name for folder in row["folders"]] == NAMES[:2]

    header, line, first, *_ = (tmp_path / "out" / "a.md").read_text().splitlines()
    assert header.startswith("| variant") and set(line) <= set("|-: ")
    assert [cell.strip() for cell in first.split("|")[2:-1]] == narrow
    assert (tmp_path / "out" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_run_is_named_and_the_others_go_on(sweep, tmp_path):
    code, output = sweep(failing=[NAMES[0], NAMES[2]])
    assert code == 1
    assert started(tmp_path) == NAMES
    assert "out of memory" in output
    for name in (NAMES[0], NAMES[2]):
        log = f"sweep/single/logs/{name}.log"
        assert f"FAILED: {name}, see {log}" in output
        assert (tmp_path / log).exists()
    assert rows(output)["ffn_dim=512"][:2] == ["1", "2.3000"]


def test_done_runs_are_not_run_again(sweep, tmp_path):
    assert sweep(failing=[NAMES[1]])[0] == 1
    (tmp_path / "started").unlink()
    code, output = sweep()
    assert code == 0 and "3 of 4 runs are done, 1 at a time" in output
    assert started(tmp_path) == [NAMES[1]]
    assert rows(output)["ffn_dim=512"][:2] == ["2", "2.2000 +- 0.1414"]


def test_a_finished_run_of_another_experiment_is_not_taken_for_this_one(
    sweep, tmp_path
):
    assert sweep()[0] == 0
    (tmp_path / "started").unlink()
    code, output = sweep("--config.steps=99")
    assert code == 2 and "holds a finished run of another experiment" in output
    assert not (tmp_path / "started").exists()


def test_as_many_run_at_a_time_as_are_asked_for(sweep, tmp_path):
    code, output = sweep("--parallel", "4", together=4)
    assert code == 0, output
    assert sorted(started(tmp_path)) == sorted(NAMES)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_ends_early_leaves_no_process_behind(start, tmp_path, number):
    process = start("--parallel", "2", together=99)
    deadline_s = time.monotonic() + 60
    while not (tmp_path / "started").exists() or len(started(tmp_path)) < 2:
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=30)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parallel", "0"], "--parallel 0: use 1 or more"),
        (["--vary", "seed"], "--vary seed: write FIELD=VALUE"),
        (
            ["--runner", "launch", "--parallel", "2", "--device", "cuda13"],
            "a swarm takes all cards to itself",
        ),
    ],
)
def test_bad_input_starts_nothing(sweep, tmp_path, arguments, message):
    code, output = sweep(*arguments)
    assert code == 2 and message in output
    assert not (tmp_path / "sweep").exists()
