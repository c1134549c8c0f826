"""What the terminal shows, from the trainer's two files."""

import io
import json

import pytest
from rich.console import Console

from swarm_jax.launcher import progress
from swarm_jax.launcher.progress import Display, Follower, RunView, render

STEP = {
    "step": 3,
    "train_loss": 2.34567,
    "tokens_per_s": 4321.0,
    "microbatches_expected": 8,
    "microbatches_counted_once": 8,
}
SWARM = {
    "step": 3,
    "answered": 5,
    "microbatches_per_step": 8,
    "stages": [
        {
            "stage": 0,
            "peers": [
                {
                    "peer": "12D3KooWaaaaa",
                    "name": "stage0-0",
                    "state": "ONLINE",
                    "queue": 2,
                    "tokens_per_s": 800.0,
                    "step": 3,
                },
                {
                    "peer": "12D3KooWbbbbb",
                    "name": "stage0-1",
                    "state": "JOINING",
                    "queue": 1,
                    "tokens_per_s": 150.0,
                    "step": 2,
                },
            ],
        },
        {"stage": 1, "peers": []},
    ],
    "waiting": "Stage 1 has no live peer: start one",
}


@pytest.fixture
def metrics(tmp_path):
    """Appends lines to the two files."""

    def write(name, *records):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    write.folder = tmp_path
    return write


def test_each_complete_line_is_read_once(tmp_path):
    path = tmp_path / "x.jsonl"
    follower = Follower(path)
    assert follower.read() == []
    path.write_text('{"a": 1}\n{"a"')
    assert follower.read() == [{"a": 1}]
    assert follower.read() == []
    with path.open("a") as file:
        file.write(': 2}\n{"a": 3}\n')
    assert follower.read() == [{"a": 2}, {"a": 3}]


def test_the_share_counted_is_over_all_steps_and_validation_loss_stays():
    view = RunView(10, "starting")
    assert view.step_line() == "starting"
    view.add_step(STEP | {"validation_loss": 2.5, "validation_loss/wiki": 2.75})
    view.add_step(STEP | {"step": 4, "microbatches_counted_once": 6})
    assert view.step_line() == (
        "step 4/10  loss 2.3457  validation loss 2.5000 (wiki 2.7500)  4,321 tokens/s  "
        "counted 87.50 %"
    )


def test_a_skipped_step_counts_as_a_step():
    view = RunView(10, "starting")
    view.add_step(STEP)
    view.add_step({"step": 4, "skipped": True})
    assert view.step_line() == (
        "step 4/10  loss 2.3457  4,321 tokens/s  counted 100.00 %  "
        "1 skipped (not finite)"
    )


def test_the_picture_shows_stages_peers_and_what_is_missing():
    view = RunView(10, "starting")
    view.add_step(STEP)
    view.swarm = SWARM
    view.waiting = SWARM["waiting"]
    view.notices.append("stage1-0 was killed by SIGKILL")
    console = Console(file=io.StringIO(), width=120)
    console.print(render(view))
    text = console.file.getvalue()
    assert text.splitlines()[1].startswith("step 3/10  loss 2.3457")
    assert "5 of 8 microbatches answered" in text
    row = next(line for line in text.splitlines() if "stage0-0" in line)
    cells = [cell.strip() for cell in row.strip("\u2502").split("\u2502")]
    assert cells[:4] == ["0", "1", "3", "950"]
    assert cells[4] == "stage0-0 800/s, stage0-1 150/s JOINING"
    assert "stage1-0 was killed by SIGKILL" in text
    assert "Stage 1 has no live peer" in text


def test_without_a_terminal_lines_are_printed_when_there_is_news(metrics):
    console = Console(file=io.StringIO(), width=60)
    view = RunView(10, "starting")
    with Display(view, metrics.folder, console, startup_s=0) as display:
        display.update()
        metrics("swarm", SWARM)
        display.update()
        display.update()
        display.notice("stage1-0 [ended]")
        metrics("swarm", SWARM | {"waiting": None})
        metrics("trainer", STEP)
    assert console.file.getvalue().splitlines() == [
        "starting",
        "Stage 1 has no live peer: start one",
        "stage1-0 [ended]",
        "step 3/10  loss 2.3457  4,321 tokens/s  counted 100.00 %  peers 1+0",
    ]


def test_missing_peers_are_no_news_while_they_start(metrics):
    console = Console(file=io.StringIO(), width=60)
    with Display(RunView(10, "starting"), metrics.folder, console) as display:
        metrics("swarm", SWARM)
        display.update()
        assert "no live peer" not in console.file.getvalue()
        metrics("trainer", STEP)
        display.update()
        assert "no live peer" in console.file.getvalue()


def test_of_several_trainers_the_one_that_closes_steps_is_believed(metrics):
    console = Console(file=io.StringIO(), width=60)
    view = RunView(10, "starting")
    with Display(view, metrics.folder, console, startup_s=0) as display:
        display.follow("trainer-1")
        display.follow("trainer-1")
        metrics("swarm", SWARM | {"step": 1})
        metrics("swarm-trainer-1", SWARM | {"step": 2})
        display.update()
        assert view.swarm["step"] == 1
        metrics("trainer-1", STEP)
        metrics("swarm-trainer-1", SWARM | {"step": 3})
        metrics("swarm", SWARM | {"step": 4})
        display.update()
    assert view.swarm["step"] == 3
    assert console.file.getvalue().count("step 3/10") == 1


def test_when_the_leader_is_silent_another_is_believed(metrics, monkeypatch):
    view = RunView(10, "starting")
    with Display(view, metrics.folder, Console(file=io.StringIO())) as display:
        display.follow("trainer-1")
        monkeypatch.setattr(progress, "SILENT_S", 0.0)
        metrics("swarm-trainer-1", SWARM | {"step": 2})
        display.update()
    assert view.swarm["step"] == 2


def test_a_terminal_gets_a_live_picture_that_ends_up_to_date(metrics):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with Display(RunView(10, "starting"), metrics.folder, console) as display:
        metrics("trainer", STEP)
        display.update()
        metrics("trainer", STEP | {"step": 10})
    assert "step 10/10" in console.file.getvalue()


def test_a_resumed_run_that_starts_does_not_say_that_peers_are_missing(metrics):
    """Steps of the part before it are no steps of its own."""
    console = Console(file=io.StringIO(), width=200)
    view = RunView(steps=10, headline="starting 4 stage servers", resumed_step=3)
    metrics("trainer", STEP)
    metrics("swarm", SWARM)
    with Display(view, metrics.folder, console) as display:
        display.update()
        assert "no live peer" not in console.file.getvalue()
        assert "starting 4 stage servers" in console.file.getvalue()
        metrics("trainer", STEP | {"step": 4})
        display.update()
        assert "no live peer" in console.file.getvalue()
    assert "step 4/10" in console.file.getvalue()
