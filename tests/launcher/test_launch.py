"""scripts.launch over stand-ins for the processes it starts: ends, deaths, signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from swarm_jax.config import load_config

REPOSITORY = Path(__file__).parents[2]
CONFIG = str(REPOSITORY / "configs" / "tiny.py")
CHILDREN = ["stage0-0", "stage1-0", "trainer"]


class Launch:
    """A launcher in a folder where ``scripts`` are the stand-ins."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.workdir = folder / "run"
        scripts = folder / "scripts"
        shutil.copytree(Path(__file__).parent / "fakes", scripts)
        (scripts / "__init__.py").touch()
        self.process: subprocess.Popen | None = None

    def start(
        self, *arguments: str, deaf_to: str = "", **environment: str
    ) -> subprocess.Popen:
        """Starts it as a shell does that has it ignore some signals."""
        ignoring = ["sh", "-c", f'trap "" {deaf_to}; exec "$@"', "sh"]
        self.process = subprocess.Popen(
            [
                *(ignoring if deaf_to else []),
                *(sys.executable, str(REPOSITORY / "scripts" / "launch.py")),
                *("--config", CONFIG, "--config.swarm.num_stages=2"),
                *("--peers-per-stage", "1", "--workdir", "run", *arguments),
            ],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self.process

    def finish(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **environment)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def wait_for_children(self) -> list[psutil.Process]:
        """All processes of the run, once each has told the kernel whom it follows."""
        wait_until(
            lambda: all((self.workdir / f"{n}.ready").exists() for n in CHILDREN)
        )
        return psutil.Process(self.process.pid).children(recursive=True)


def wait_until(condition, timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never came true"
        time.sleep(0.02)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run; a zombie that nobody reaps in a container is gone."""
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def ignores(process: psutil.Process, number: signal.Signals) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    ignored = next(x for x in status.splitlines() if x.startswith("SigIgn"))
    return bool(int(ignored.split()[1], 16) & 1 << number - 1)


@pytest.fixture
def launch(tmp_path):
    launch = Launch(tmp_path)
    yield launch
    if launch.process is not None:
        left = [p for p in alive(psutil.Process().children(recursive=True))]
        for process in left:
            process.kill()
        launch.process.communicate()
        assert not left


def test_a_run_ends_with_its_summary_and_the_wall_time_that_the_user_saw(launch):
    code, output, errors = launch.finish()
    assert (code, errors) == (0, "")
    assert "step 1/150  loss 2.5000  1,234 tokens/s  counted 100.00 %" in output
    assert "validation loss" in output and "1.5000" in output
    assert "of a bigram model" in output and "2.5000" in output
    assert json.loads((launch.workdir / "summary.json").read_text())["wall_s"] > 0


@pytest.mark.parametrize(
    ("number", "servers", "processes"),
    [
        (signal.SIGTERM, "willing", 4),  # bootstrap, 2 servers, trainer
        (signal.SIGINT, "stubborn", 6),  # with a child of each server
    ],
)
@pytest.mark.parametrize("deaf_to", ["", "INT"], ids=["foreground", "background"])
def test_a_signal_stops_everything_in_seconds(
    launch, number, servers, processes, deaf_to
):
    process = launch.start(deaf_to=deaf_to, FAKE_SERVER=servers, FAKE_TRAINER="stay")
    children = launch.wait_for_children()
    assert len(children) == processes
    os.killpg(process.pid, number)  # as a terminal does it
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    for name in CHILDREN:
        assert not (launch.workdir / "logs" / f"{name}.log").read_text()
    assert not alive(children)


def test_nohup_outlives_the_terminal_and_its_children_still_hear_how_to_end(launch):
    process = launch.start(deaf_to="HUP", FAKE_TRAINER="wait_for_notice")
    children = launch.wait_for_children()
    assert not any(ignores(child, signal.SIGHUP) for child in children)
    os.kill(process.pid, signal.SIGHUP)
    (launch.workdir / "noticed").touch()
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert not alive(children)


def test_children_die_with_a_killed_launcher(launch):
    process = launch.start(FAKE_TRAINER="stay")
    children = launch.wait_for_children()
    process.kill()
    process.wait()
    wait_until(lambda: not alive(children))


def test_a_dying_trainer_ends_the_run_with_its_last_words(launch):
    code, _, errors = launch.finish(FAKE_TRAINER="die")
    assert code == 1
    assert "trainer ended with exit code 1. Last lines of run/logs/trainer" in errors
    assert "The model diverged at step 3." in errors
    assert "No summary" not in errors


def test_a_trainer_without_a_summary_is_a_failure(launch):
    code, _, errors = launch.finish(FAKE_TRAINER="no_summary")
    assert code == 1
    assert "No summary was written" in errors


def test_a_dying_server_and_a_waiting_stage_are_reported_while_training_goes_on(launch):
    process = launch.start(FAKE_SERVER="die", FAKE_TRAINER="wait_for_notice")
    lines = []
    while not any("Start one" in x for x in lines) or not any(
        "SIG" in x for x in lines
    ):
        lines.append(process.stdout.readline())
        assert lines[-1]
    (launch.workdir / "noticed").touch()
    process.communicate(timeout=30)
    assert process.returncode == 0
    notice = "stage0-0 was killed by SIGKILL, training goes on: Out of memory."
    assert any(notice in line for line in lines)


def test_a_server_that_cannot_start_ends_the_run(launch):
    code, _, errors = launch.finish(FAKE_SERVER="refuse", FAKE_TRAINER="no_step")
    assert code == 1
    assert "This port is taken." in errors


def test_a_server_that_is_cut_off_later_does_not(launch):
    process = launch.start(FAKE_SERVER="cut_off", FAKE_TRAINER="wait_for_notice")
    ended = 0
    while ended < 2:
        line = process.stdout.readline()
        assert line
        ended += "ended with exit code 2, training goes on" in line
    (launch.workdir / "noticed").touch()
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_an_earlier_run_is_kept_unless_told_otherwise(launch):
    earlier = launch.workdir / "metrics" / "trainer.jsonl"
    earlier.parent.mkdir(parents=True)
    earlier.write_text('{"step": 7}\n')
    others = [launch.workdir / "notes.json", launch.workdir / "logs" / "mine.txt"]
    others[1].parent.mkdir()
    for path in others:
        path.write_text("not written by a run")
    code, _, errors = launch.finish()
    assert code == 2
    assert "another folder with --workdir" in errors and "--overwrite" in errors
    assert earlier.read_text() == '{"step": 7}\n'
    code, _, _ = launch.finish("--overwrite")
    assert code == 0
    assert '"step": 7' not in earlier.read_text()
    assert all(path.exists() for path in others)


def write_run(launch: Launch, steps: int, checkpoint: int) -> None:
    """What an unfinished run of the same experiment left."""
    metrics, step = launch.workdir / "metrics", f"step_{checkpoint:08d}"
    folder = launch.workdir / "checkpoints" / step
    for path in (metrics, folder):
        path.mkdir(parents=True)
    record = {"train_loss": 3.0, "tokens_per_s": 99.0, "microbatches_expected": 8}
    lines = [
        json.dumps({"step": step, **record, "microbatches_counted_once": 8})
        for step in range(1, steps + 1)
    ]
    (metrics / "trainer.jsonl").write_text("\n".join(lines) + "\n")
    fingerprint = load_config(CONFIG).model_fingerprint()
    marker = {"step": checkpoint, "model_fingerprint": fingerprint}
    (folder / "complete.json").write_text(json.dumps(marker))


def test_an_unfinished_run_goes_on_and_may_go_back_further(launch):
    write_run(launch, steps=30, checkpoint=25)
    code, output, errors = launch.finish(FAKE_TRAINER="may_go_back")
    assert (code, errors) == (0, "")
    assert "run goes on from its checkpoint of step 25" in output
    metrics = (launch.workdir / "metrics" / "trainer.jsonl").read_text()
    assert [json.loads(x)["step"] for x in metrics.splitlines()] == [*range(1, 26), 1]


def test_a_server_that_cannot_start_ends_the_run_when_it_goes_on(launch):
    """Unseen it left the trainer waiting for ever."""
    write_run(launch, steps=25, checkpoint=25)
    code, _, errors = launch.finish(FAKE_SERVER="refuse", FAKE_TRAINER="no_step")
    assert code == 1
    assert "This port is taken." in errors


def test_a_second_launch_in_the_same_folder_is_refused(launch):
    process = launch.start(FAKE_TRAINER="stay")
    children = launch.wait_for_children()
    code, _, errors = launch.finish()
    launch.process = process
    assert code == 2
    assert "run is in use" in errors
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert "Stopped before the first checkpoint" in output
    assert not alive(children)


def test_what_a_failed_start_left_is_no_run(launch):
    assert launch.finish(FAKE_SERVER="refuse", FAKE_TRAINER="no_step")[0] == 1
    assert (launch.workdir / "bootstrap.json").exists()
    assert launch.finish()[0] == 0


def test_nonsense_is_answered_in_one_line_before_anything_starts(launch):
    for arguments in (
        ("--config.swarm.num_stage=2",),
        ("--peers-per-stage", "0"),
        ("--kill-every", "5"),
        ("--workdir", "/proc/nowhere"),
        ("--wurkdir", "x"),
    ):
        code, output, errors = launch.finish(*arguments)
        assert (code, output) == (2, "")
        assert len(errors.splitlines()) == 1
