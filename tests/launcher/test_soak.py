"""A soak over stand-ins for the processes: who is killed, replaced, and summed up."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from swarm_jax.launcher.churn import Action, ChurnSettings, Kind
from swarm_jax.launcher.processes import ProcessDied, Processes
from swarm_jax.launcher.roster import LEAVE_LIMIT_S, WAKING_S, Roster
from swarm_jax.launcher.swarm import LocalSwarm

REPOSITORY = Path(__file__).parents[2]
CONFIG = str(REPOSITORY / "configs" / "tiny.py")
SLEEPER = "import signal; signal.pause()"
POLITE = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
print("ready", flush=True)
while True:
    signal.pause()
"""


def wait_until(condition, timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never came true"
        time.sleep(0.02)


class Crew:
    """A roster of real but idle processes."""

    def __init__(self, processes: Processes, program: str):
        self.children = {}
        self._processes, self._program = processes, program
        self.roster = Roster(
            lambda stage, number: self._start(f"stage{stage}-{number}"), self._start
        )
        for stage in (0, 0, 1, None, None):
            self.roster.start(stage)

    def _start(self, name: str):
        command = [sys.executable, "-c", self._program]
        self.children[name] = self._processes.start(name, command, {})
        return self.children[name]

    def apply(self, kind: Kind, target: str | None, now_s: float, stage=0) -> str:
        action = Action(kind=kind, target=target, stage=stage, pause_s=2.0)
        return self.roster.apply(action, now_s)

    def state(self, name: str) -> str:
        stat = Path(f"/proc/{self.children[name].popen.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]

    def ended(self, name: str) -> None:
        wait_until(lambda: self.children[name].exit_code is not None)


@pytest.fixture
def start_crew(tmp_path):
    with Processes(tmp_path / "logs") as processes:
        yield lambda program=SLEEPER: Crew(processes, program)


def test_the_killed_are_replaced_under_a_new_name_after_their_pause(start_crew):
    crew = start_crew()
    assert crew.apply(Kind.KILL, "stage0-1", 10.0) == "stage0-1: SIGKILL"
    everyone = {"stage0-0", "stage1-0", "trainer", "trainer-1"}
    assert crew.roster.running(10.0) == everyone
    crew.ended("stage0-1")
    assert crew.roster.tend(11.9, None) == []
    assert crew.roster.tend(12.0, None) == ["stage0-2: starts"]
    assert crew.apply(Kind.KILL, "trainer", 13.0, stage=None) == (
        "trainer, which leads: SIGKILL"
    )
    crew.ended("trainer")
    assert crew.roster.tend(15.0, None) == ["trainer-2: starts"]
    assert crew.roster.trainers == ["trainer", "trainer-1", "trainer-2"]
    assert crew.roster.joined == ["stage0-2"]
    assert crew.roster.counts["kills"] == crew.roster.counts["trainer_kills"] == 1


def test_a_stopped_server_goes_on_and_is_not_counted_on_at_once(start_crew):
    crew = start_crew()
    assert crew.apply(Kind.STOP, "stage0-0", 1.0) == "stage0-0: SIGSTOP for 2.0 s"
    wait_until(lambda: crew.state("stage0-0") == "T")
    assert crew.roster.tend(2.9, None) == []
    assert crew.roster.tend(3.0, None) == ["stage0-0: SIGCONT"]
    wait_until(lambda: crew.state("stage0-0") == "S")
    assert "stage0-0" not in crew.roster.running(3.0)
    assert "stage0-0" in crew.roster.running(3.0 + WAKING_S)
    crew.apply(Kind.STOP, "stage0-0", 20.0)
    crew.roster.wake_all(21.0)
    wait_until(lambda: crew.state("stage0-0") == "S")


@pytest.mark.parametrize("code", [0, 1])
def test_who_was_told_to_leave_is_replaced_when_it_is_gone(start_crew, code):
    crew = start_crew(POLITE.format(code=code))
    wait_until(lambda: crew.children["stage0-0"].log.read_text() == "ready\n")
    crew.apply(Kind.LEAVE, "stage0-0", 5.0)
    assert "stage0-0" not in crew.roster.running(5.0)
    crew.ended("stage0-0")
    (news,) = crew.roster.tend(9.0, None)
    assert ("left after 4.0 s" in news) == (code == 0)
    assert ("did not leave cleanly: ended with exit code 1" in news) == (code == 1)
    assert crew.roster.tend(10.9, None) == []
    assert crew.roster.tend(11.0, None) == ["stage0-2: starts"]
    assert (crew.roster.counts["leaves"], crew.roster.counts["unclean_leaves"]) == (
        1,
        code,
    )


def test_who_does_not_leave_is_named_once(start_crew):
    crew = start_crew("import signal, time\nsignal.signal(15, signal.SIG_IGN)\n"
                      "print('ready', flush=True)\nsignal.pause()")  # fmt: skip
    wait_until(lambda: crew.children["stage0-0"].log.read_text() == "ready\n")
    crew.apply(Kind.LEAVE, "stage0-0", 0.0)
    assert crew.roster.tend(LEAVE_LIMIT_S, None) == []
    assert crew.roster.tend(LEAVE_LIMIT_S + 1, None) == [
        "stage0-0 has not left after 30 s"
    ]
    assert crew.roster.tend(LEAVE_LIMIT_S + 2, None) == []


def test_a_whole_stage_goes_at_once_even_its_sleepers(start_crew):
    crew = start_crew()
    crew.apply(Kind.STOP, "stage0-1", 0.0)
    assert crew.apply(Kind.KILL_STAGE, None, 1.0) == (
        "stage0-0, stage0-1: SIGKILL of a whole stage"
    )
    crew.ended("stage0-0")
    crew.ended("stage0-1")
    assert crew.roster.counts["kills"] == 2
    assert crew.roster.tend(3.0, None) == ["stage0-2: starts", "stage0-3: starts"]


def test_a_server_that_dies_of_itself_is_reported_and_a_trainer_ends_the_run(
    start_crew,
):
    crew = start_crew()
    crew.children["stage1-0"].popen.send_signal(signal.SIGKILL)
    crew.ended("stage1-0")
    (news,) = crew.roster.tend(1.0, None)
    assert "stage1-0 was killed by SIGKILL" in news
    assert crew.roster.counts["crashes"] == 1
    crew.children["trainer"].popen.send_signal(signal.SIGKILL)
    crew.ended("trainer")
    with pytest.raises(ProcessDied, match="trainer was killed by SIGKILL"):
        crew.roster.tend(2.0, None)


@pytest.fixture
def swarm(tmp_path, monkeypatch):
    """A soak of a few seconds over the stand-ins; its children find them by folder."""
    scripts = tmp_path / "scripts"
    shutil.copytree(Path(__file__).parent / "fakes", scripts)
    (scripts / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("FAKE_TRAINER", "lead_in_turns")
    previous = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}

    def run(servers: str, **changes) -> tuple[dict, str]:
        os.environ["FAKE_SERVER"] = servers
        workdir = tmp_path / "run"
        settings = {"every_s": 0.2, "seed": 1, "fault_free_s": 0.5, "quiet_end_s": 0.5}
        settings |= {"kill_whole_stage": True}
        swarm = LocalSwarm(
            **{"experiment": ["--config", CONFIG], "num_stages": 2, "steps": 10_000},
            **{"workdir": workdir, "cache_dir": tmp_path / "cache"},
            **{"peers_per_stage": 2, "duration_s": 4.0}
            | {"churn": ChurnSettings(**settings)}
            | changes,
        )
        shown = Console(file=(tmp_path / "shown").open("w"), width=100)
        swarm.run(shown)
        shown.file.close()
        summary = json.loads((workdir / "summary.json").read_text())
        return summary, (tmp_path / "shown").read_text()

    monkeypatch.setenv("FAKE_SERVER", "")
    yield run
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_a_soak_ends_with_all_its_figures(swarm):
    summary, shown = swarm("leave")
    assert summary["kills"] >= 2  # the whole stage
    assert "SIGKILL of a whole stage" in shown
    kinds = [*("kills", "stops", "leaves"), *("trainer_kills", "trainer_stops")]
    assert sum(summary[kind] for kind in (*kinds, "trainer_leaves")) >= 3
    log = summary["fault_log"]
    assert len(log) == summary["faults"] and "SIG" in log[0]["what"]
    assert 0 < summary["recoveries"] <= summary["faults"]
    assert summary["loss_vs_control"] == pytest.approx(1e-3, rel=1e-6)
    assert summary["microbatches_counted_once"] == summary["microbatches_expected"] > 0
    assert 0 < summary["throughput_vs_fault_free"]
    assert summary["fault_free_s"] >= 0.5 and summary["duration_s"] >= 4.0
    assert summary["crashes"] == summary["unclean_leaves"] == 0
    assert "recovered from" in shown and "control's loss" in shown


def test_a_duration_alone_kills_nobody_and_runs_no_control(swarm):
    summary, shown = swarm("leave", duration_s=1.0, churn=None)
    assert summary["duration_s"] >= 1.0
    assert summary["steps"] > 3
    assert "kills" not in summary and "loss_vs_control" not in summary
    assert "control" not in shown and "SIG" not in shown
