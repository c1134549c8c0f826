"""What the terminal shows while a run goes on.

The trainer writes two files into ``metrics/``: ``trainer.jsonl``, a line per step, and
``swarm.jsonl``, about a line per second::

    {"time_s": 12.0, "step": 17, "steps": 200,
     "answered": 5, "microbatches_per_step": 8,
     "stages": [{"stage": 0, "peers": [{"peer": "12D3..", "name": "stage0-0",
                 "state": "ONLINE", "queue": 3, "tokens_per_s": 812.0,
                 "step": 17}]}],
     "waiting": null}

``waiting`` is a sentence that names what is missing and the command that brings it. A
step that was skipped because the model gave non-finite values has no loss and no
microbatches: ``{"step": 18, "skipped": true}``.
"""

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from swarm_jax.metrics import is_validation, validation_text

PLAIN_PERIOD_S = 5.0
"""How often a line is printed where there is no terminal."""

STARTUP_S = 8.0
"""How long before the first step nobody is told that peers are missing: they start."""

SILENT_S = 3.0
"""A leader that has not written how it sees the swarm for so long may be dead."""

SERVING_STATES = ("ONLINE",)


def swarm_file(trainer: str) -> str:
    """Name of the file to which a trainer writes the swarm as it sees it."""
    return "swarm.jsonl" if trainer == "trainer" else f"swarm-{trainer}.jsonl"


class Follower:
    """Reads a growing JSON-lines file: each complete line once, when it is there."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return [json.loads(line) for line in complete.splitlines()]


class RunView:
    """What is known of a run, from its metrics files.

    Args:
        steps: Steps that the run will take.
        headline: Shown until the first step, for example where the logs are.
        resumed_step: The last one that an earlier part of the run has taken.
    """

    def __init__(self, steps: int, headline: str, resumed_step: int = 0):
        self.steps = steps
        self.headline = headline
        self.resumed_step = resumed_step
        self.step = 0
        self.skipped_steps = 0
        self.trainer: dict[str, Any] = {}
        self.swarm: dict[str, Any] = {}
        self.waiting: str | None = None
        self.validation: dict[str, float] = {}
        self.notices: list[str] = []
        self._expected = 0
        self._counted = 0

    @property
    def has_begun(self) -> bool:
        """Whether a step was taken, beside those of an earlier part of the run."""
        return self.step > self.resumed_step

    def add_step(self, record: dict[str, Any]) -> None:
        """Takes a line of trainer.jsonl."""
        self.step = record["step"]
        self.validation |= {n: loss for n, loss in record.items() if is_validation(n)}
        if record.get("skipped"):
            self.skipped_steps += 1
            return
        self.trainer = record
        self._expected += record["microbatches_expected"]
        self._counted += record["microbatches_counted_once"]

    def step_line(self) -> str:
        """Step, losses, speed and share of microbatches counted, in one line."""
        if not self.trainer or not self.has_begun:
            return self.headline
        parts = [
            f"step {self.step}/{self.steps}",
            f"loss {self.trainer['train_loss']:.4f}",
        ]
        if text := validation_text(self.validation):
            parts.append(text)
        parts.append(f"{self.trainer['tokens_per_s']:,.0f} tokens/s")
        parts.append(f"counted {100 * self._counted / self._expected:.2f} %")
        if self.skipped_steps:
            parts.append(f"{self.skipped_steps} skipped (not finite)")
        return "  ".join(parts)

    def peers_line(self) -> str:
        """Serving peers of each stage, for example ``peers 2+2+1``."""
        stages = self.swarm.get("stages", ())
        return "peers " + "+".join(str(_serving(stage)) for stage in stages)


def render(view: RunView) -> RenderableType:
    """The live picture: a bar, a line, a row per stage, what is wrong."""
    parts: list[RenderableType] = [
        # A bar ends without a new line of its own.
        Padding(ProgressBar(total=view.steps, completed=view.step), expand=False),
        Text(view.step_line()),
    ]
    if view.swarm:
        answered, total = view.swarm["answered"], view.swarm["microbatches_per_step"]
        parts.append(Text(f"this step: {answered} of {total} microbatches answered"))
        parts.append(_stage_table(view.swarm["stages"]))
    parts.extend(Text(notice, style="red") for notice in view.notices)
    if view.waiting:
        parts.append(Text(view.waiting, style="bold yellow"))
    return Group(*parts)


class Display:
    """Keeps the terminal up to date; a context manager.

    Args:
        view: Filled from the files by ``update``.
        metrics_dir: The run's ``metrics`` folder.
        console: A terminal gets a live picture, anything else a line now and then.
        startup_s: What a run waits for is not shown before its first step or this time.
    """

    def __init__(
        self,
        view: RunView,
        metrics_dir: Path,
        console: Console,
        startup_s: float = STARTUP_S,
    ):
        self._view = view
        self._console = console
        self._metrics_dir = metrics_dir
        self._steps: dict[str, Follower] = {}
        self._swarms: dict[str, Follower] = {}
        self.follow("trainer")
        self._leader = "trainer"
        self._leader_s = time.monotonic()
        self._printed: dict[str, str] = {}
        self._next_line_s = 0.0
        self._started_s = time.monotonic() + startup_s
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                console=console, get_renderable=lambda: render(view), transient=False
            )

    def __enter__(self) -> "Display":
        self._context().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.update(final=True)
        self._context().__exit__(*exception)

    def update(self, final: bool = False) -> None:
        """Reads what is new; prints it if there is no terminal."""
        for trainer, steps in self._steps.items():
            for record in steps.read():
                self._leader = trainer
                self._view.add_step(record)
        for trainer, swarm in self._swarms.items():
            for record in swarm.read():
                self._add_swarm(trainer, record)
        if self._view.has_begun or time.monotonic() >= self._started_s:
            self._view.waiting = self._view.swarm.get("waiting")
        if self._live is None:
            self._print_lines(final)

    def follow(self, trainer: str) -> None:
        """Reads the files of another trainer too; of one that is followed: nothing."""
        if trainer not in self._steps:
            self._steps[trainer] = Follower(self._metrics_dir / f"{trainer}.jsonl")
            self._swarms[trainer] = Follower(self._metrics_dir / swarm_file(trainer))

    def notice(self, text: str) -> None:
        """Shows, from now on, that something is wrong."""
        self._view.notices.append(text)
        if self._live is None:
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _add_swarm(self, trainer: str, record: dict[str, Any]) -> None:
        """Shows the swarm as the leader sees it; as another does, while it is silent.

        What a trainer that stands by waits for is of no interest.
        """
        now_s = time.monotonic()
        if trainer != self._leader and now_s - self._leader_s < SILENT_S:
            return
        self._leader, self._leader_s = trainer, now_s
        self._view.swarm = record

    def _context(self) -> AbstractContextManager:
        return self._live or nullcontext()

    def _print_lines(self, final: bool) -> None:
        self._print_if_new("waiting", self._view.waiting or "")
        if final or time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + PLAIN_PERIOD_S
            line = self._view.step_line()
            if self._view.swarm:
                line += "  " + self._view.peers_line()
            self._print_if_new("step", line)

    def _print_if_new(self, kind: str, line: str) -> None:
        if line and self._printed.get(kind) != line:
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)
        self._printed[kind] = line


def _stage_table(stages: Sequence[dict[str, Any]]) -> Table:
    table = Table("stage", "peers", "queue", "tokens/s", "each peer")
    for stage in stages:
        peers = stage["peers"]
        table.add_row(
            str(stage["stage"]),
            str(_serving(stage)),
            str(sum(peer["queue"] for peer in peers)),
            f"{sum(peer['tokens_per_s'] for peer in peers):,.0f}",
            ", ".join(_peer_text(peer) for peer in peers),
        )
    return table


def _peer_text(peer: dict[str, Any]) -> str:
    text = f"{peer['name']} {peer['tokens_per_s']:,.0f}/s"
    return text if peer["state"] in SERVING_STATES else f"{text} {peer['state']}"


def _serving(stage: dict[str, Any]) -> int:
    return sum(peer["state"] in SERVING_STATES for peer in stage["peers"])
