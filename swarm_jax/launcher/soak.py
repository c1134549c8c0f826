"""A run of so many seconds during which peers are killed, stopped and told to leave.

Its clock starts when the programs are compiled (``runs.COMPILING_STEPS`` steps) and
every server is ONLINE. It ends with the step that is in progress after ``duration_s``.
"""

import bisect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from swarm_jax.launcher import figures
from swarm_jax.launcher.churn import Churn, ChurnSettings, Kind, serving
from swarm_jax.launcher.figures import Close, Fault
from swarm_jax.launcher.flags import EXIT_BAD_INPUT
from swarm_jax.launcher.processes import Child, ProcessDied
from swarm_jax.launcher.progress import Display, Follower, RunView, swarm_file
from swarm_jax.launcher.roster import Roster
from swarm_jax.launcher.runs import COMPILING_STEPS
from swarm_jax.metrics import read_records

POLL_S = 0.1

LAST_STEP_S = 60.0
"""How long the step in progress may take after the end; then it is left open."""

STALE_S = 4.0
"""A view of the swarm that is older decides nothing."""

FAULTS = (Kind.KILL, Kind.STOP, Kind.KILL_STAGE)
"""What a swarm recovers from; one that leaves hands over and is not missed."""


@dataclass(slots=True)
class Observed:
    """What was seen; times count from any moment.

    Attributes:
        records: Last record of each step.
        closes: Every step that was closed since ``start_s``.
        start_s, end_s: Of the soak's clock.
        first_action_s: Until then the swarm was whole.
        shares: Time and share of serving peers in the smallest stage, each poll.
    """

    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    closes: list[Close] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    start_s: float = 0.0
    first_action_s: float | None = None
    end_s: float = 0.0
    shares: list[tuple[float, float]] = field(default_factory=list)


class Soak:
    """Watches a run and lays hands on it.

    Args:
        roster: Its servers and trainers, started.
        bootstrap: Without it nobody could join.
        churn: None: nobody is killed.
        peers_per_stage: Servers of each stage in the beginning.
    """

    def __init__(
        self,
        roster: Roster,
        bootstrap: Child,
        workdir: Path,
        *,
        duration_s: float,
        churn: ChurnSettings | None,
        peers_per_stage: int,
    ):
        self._roster = roster
        self._bootstrap = bootstrap
        self._metrics = workdir / "metrics"
        self._duration_s = duration_s
        self._churn = None if churn is None else Churn(churn, duration_s)
        self._peers_per_stage = peers_per_stage
        self._steps: dict[str, Follower] = {}
        self._swarms: dict[str, Follower] = {}
        self._view: tuple[float, Sequence[dict[str, Any]]] = (float("-inf"), ())
        self._leader: str | None = None
        self._viewers: set[str] = set()
        self._origin_s = time.monotonic()
        self._clock_s: float | None = None
        self.observed = Observed()

    def watch(self, view: RunView, console: Console) -> None:
        """Returns when the time is over, or the steps are.

        Raises:
            ProcessDied: The bootstrap or a trainer ended, or a server could not start
                for a reason that its user can mend.
        """
        with Display(view, self._metrics, console) as display:
            while not self._is_over():
                self._turn(view, display)
                time.sleep(POLL_S)
        self._roster.wake_all(self._now_s())
        self.observed.end_s = self._now_s()

    def _turn(self, view: RunView, display: Display) -> None:
        if self._bootstrap.exit_code is not None:
            raise ProcessDied(self._bootstrap.obituary())
        for server in self._roster.servers():
            if server.exit_code == EXIT_BAD_INPUT and view.step == 0:
                raise ProcessDied(server.obituary())
        now_s = self._now_s()
        self._read(now_s)
        for name in self._roster.trainers:
            display.follow(name)
        display.update()
        for news in self._roster.tend(now_s, self._churn):
            display.notice(self._stamped(news, now_s))
        if self._clock_s is None:
            self._start_clock_when_warm(now_s)
        else:
            self._act(now_s, display)

    def _now_s(self) -> float:
        return time.monotonic() - self._origin_s

    def _read(self, now_s: float) -> None:
        """Takes in what the trainers have written."""
        for name in self._roster.trainers:
            steps = self._steps.setdefault(
                name, Follower(self._metrics / f"{name}.jsonl")
            )
            for record in steps.read():
                self._leader = name
                self.observed.records[record["step"]] = record
                self._note_close(record)
            swarm = self._swarms.setdefault(
                name, Follower(self._metrics / swarm_file(name))
            )
            for record in swarm.read():
                self._viewers.add(name)
                self._view = (now_s, record["stages"])

    def _note_close(self, record: dict[str, Any]) -> None:
        """A trainer's clock is ours, and it knows better than we when a step closed."""
        close = Close(record["time_s"] - self._origin_s, record.get("tokens", 0))
        if self._clock_s is not None:
            bisect.insort(self.observed.closes, close, key=lambda close: close.at_s)

    def _start_clock_when_warm(self, now_s: float) -> None:
        servers = {child.name for child in self._roster.servers()}
        awaited = servers & self._roster.running(now_s)
        online = {name for names in self._serving(now_s).values() for name in names}
        if awaited == online and len(self.observed.records) >= COMPILING_STEPS:
            self._clock_s = self.observed.start_s = now_s

    def _serving(self, now_s: float) -> dict[int, list[str]]:
        read_s, stages = self._view
        if now_s - read_s > STALE_S:
            return {}
        return serving(stages, self._roster.running(now_s))

    def _act(self, now_s: float, display: Display) -> None:
        online = self._serving(now_s)
        share = figures.smallest_share(online, self._peers_per_stage)
        if online:
            self.observed.shares.append((now_s, share))
        if self._churn is None:
            return
        action = self._churn.next_action(
            now_s - self._clock_s, online, self._replaceable_leader(now_s)
        )
        if action is None:
            return
        what = self._roster.apply(action, now_s)
        display.notice(self._stamped(what, now_s))
        if action.stage is None:
            self._leader = None
        if self.observed.first_action_s is None:
            self.observed.first_action_s = now_s
        if action.kind in FAULTS:
            fault = Fault(now_s, self._share_left(now_s), what)
            self.observed.faults.append(fault)

    def _share_left(self, now_s: float) -> float:
        """Share of serving peers after a fault, in the smallest stage."""
        online = self._serving(now_s)
        if not online and self.observed.shares:  # nobody says; only a trainer was taken
            return self.observed.shares[-1][1]
        share = figures.smallest_share(online, self._peers_per_stage)
        # Where none is left, the first one that joins is all that can be hoped for.
        return share or 1 / self._peers_per_stage

    def _replaceable_leader(self, now_s: float) -> str | None:
        """The leading trainer, if another is there and sees the swarm."""
        running = self._roster.running(now_s) & self._viewers
        if self._leader in running and len(running) > 1:
            return self._leader
        return None

    def _is_over(self) -> bool:
        if self._roster.finished:
            return True
        if self._clock_s is None:
            return False
        due_s = self._clock_s + self._duration_s
        closes = self.observed.closes
        closed_since = bool(closes) and closes[-1].at_s >= due_s
        return closed_since or self._now_s() >= due_s + LAST_STEP_S

    def _stamped(self, news: str, now_s: float) -> str:
        if self._clock_s is None:
            return f"[starting] {news}"
        return f"[{now_s - self._clock_s:.1f} s] {news}"

    def losses(self) -> dict[int, float]:
        """Training loss by step, nats per token, without skipped steps."""
        return {
            step: record["train_loss"]
            for step, record in self.observed.records.items()
            if not record.get("skipped")
        }

    def summary(self) -> dict[str, Any]:
        """All figures but those that need a control run."""
        observed = self.observed
        result = figures.step_figures(observed.records)
        result["tokens_per_s"] = figures.tokens_per_s(observed.closes, 0, float("inf"))
        result["duration_s"] = observed.end_s - observed.start_s
        if self._churn is None:
            return result
        return result | self._roster.counts | self._churn_figures()

    def _churn_figures(self) -> dict[str, Any]:
        observed = self.observed
        begin_s = observed.first_action_s
        if begin_s is None:
            begin_s = observed.end_s
        whole = figures.tokens_per_s(observed.closes, 0, begin_s)
        under_churn = figures.tokens_per_s(observed.closes, begin_s, observed.end_s)
        share = figures.mean_share(observed.shares, begin_s)
        joins = [
            record
            for name in self._roster.joined
            if (path := self._metrics / f"{name}.jsonl").exists()
            for record in read_records(path)
        ]
        recoveries = figures.recovery_figures(observed.faults, observed.closes, whole)
        for entry in recoveries["fault_log"]:
            entry["at_s"] -= observed.start_s
        return {
            **recoveries,
            "joined_peers": len(self._roster.joined),
            "join_to_first_microbatch_s": figures.join_median_s(joins),
            "fault_free_tokens_per_s": whole,
            "fault_free_s": begin_s - observed.start_s,
            "throughput_vs_fault_free": under_churn / whole if whole else None,
            "throughput_vs_survivors": (
                under_churn / (whole * share) if whole and share else None
            ),
        }
