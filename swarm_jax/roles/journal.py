"""What a leader records: a line per step, the swarm every second, the totals."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.ledger import Audit
from swarm_jax.core.reports import CommitRecord, Report
from swarm_jax.core.traffic import Traffic
from swarm_jax.metrics import MetricsWriter
from swarm_jax.roles.peers import SwarmView
from swarm_jax.roles.relay import Answer

logger = logging.getLogger(__name__)

WAITING_REMINDER_S = 10.0
SWARM_PERIOD_S = 1.0


@dataclass(slots=True)
class Totals:
    """Over all steps that this trainer closed.

    Attributes:
        answered: Microbatches that came back with a gradient, repetitions included.
        microbatches: From the ledgers that the steps were closed with.
        traffic: Of the answered microbatches.
        timed_tokens, timed_s: Of all steps but the first, which compiles.
    """

    steps: int = 0
    skipped_steps: int = 0
    answered: int = 0
    microbatches: Audit = field(default_factory=lambda: Audit(0, 0, 0, 0))
    traffic: Traffic = field(default_factory=Traffic)
    timed_tokens: int = 0
    timed_s: float = 0.0
    final_train_loss: float | None = None
    validation_losses: dict[str, float | None] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """For ``summary.json``; ``tokens_per_s`` leaves the first step out."""
        return {
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "final_train_loss": self.final_train_loss,
            "validation_loss": None,
            **self.validation_losses,
            "tokens_per_s": self.timed_tokens / self.timed_s if self.timed_s else None,
            "microbatches_expected": self.microbatches.expected,
            "microbatches_counted_once": self.microbatches.counted_once,
            "microbatches_lost": self.microbatches.lost,
            "microbatches_counted_twice": self.microbatches.counted_twice,
            "microbatches_answered": self.answered,
            **self.traffic.figures(),
        }


@dataclass(slots=True)
class _Ahead:
    """What was answered of a step before the one before it was committed."""

    step: int
    answered: set[int] = field(default_factory=set)
    latencies_s: list[float] = field(default_factory=list)


class Journal:
    """Keeps the figures of the step in progress and writes them when it is committed.

    Args:
        steps: Gets a record per step.
        swarm: Gets a record per second.
        learning_rate: Of a step, counted from 0.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        view: SwarmView,
        *,
        steps: MetricsWriter,
        swarm: MetricsWriter,
        learning_rate: Callable[[int], float],
    ):
        self._config = config
        self._view = view
        self._steps = steps
        self._swarm = swarm
        self._learning_rate = learning_rate
        self._closing: dict[str, Any] | None = None
        self._unvalidated: dict[str, Any] | None = None
        self._step_start_s: float | None = None
        self._waiting: str | None = None
        self._reminded_s = 0.0
        self._step = 0
        self._term = 0
        self._begins = True
        self._answered: set[int] = set()
        self._latencies_s: list[float] = []
        self._ahead: _Ahead | None = None
        self.totals = Totals()

    @property
    def figures(self) -> dict[str, float]:
        """What a checkpoint says of the run."""
        summary = self.totals.summary()
        return {name: value for name, value in summary.items() if value is not None}

    @property
    def validation_due(self) -> bool:
        return self._unvalidated is not None

    def begin_term(self, number: int) -> None:
        """What this trainer takes over it times from now on.

        A step that was being closed is forgotten if another trainer has led since: that
        one may have closed it again, and recorded it.
        """
        self._step_start_s = asyncio.get_running_loop().time()
        if number != self._term + 1:
            self._closing = None
        self._term, self._begins = number, True

    def end_term(self) -> None:
        """A step that was to be validated keeps its record; others go on."""
        if self._unvalidated is not None:
            self._steps.write(**self._unvalidated)
        self._unvalidated = None

    def feeding(self, step: int) -> None:
        """Microbatches of ``step`` are about to be sent."""
        self._say_what_goes_on(step)
        if step != self._step or self._step_start_s is None:
            self._step, self._answered, self._latencies_s = step, set(), []
            self._step_start_s = asyncio.get_running_loop().time()

    def feeding_ahead(self, step: int) -> None:
        """Microbatches of ``step`` are about to be sent while the one before closes."""
        self._say_what_goes_on(step - 1)
        if self._ahead is None or self._ahead.step != step:
            self._ahead = _Ahead(step)

    def answered(self, index: int, tokens: int, answer: Answer) -> None:
        self._answered.add(index)
        self._latencies_s.append(answer.trace[0]["elapsed_s"])
        self._add_answer(tokens, answer)

    def answered_ahead(self, index: int, tokens: int, answer: Answer) -> None:
        """``answered``, of the step that is fed ahead."""
        self._ahead.answered.add(index)
        self._ahead.latencies_s.append(answer.trace[0]["elapsed_s"])
        self._add_answer(tokens, answer)

    def _add_answer(self, tokens: int, answer: Answer) -> None:
        self.totals.answered += 1
        self.totals.traffic.add(answer.trace, tokens)

    def waiting(self, reason: str) -> None:
        """Says what the run waits for, at once and then every ten seconds."""
        now_s = asyncio.get_running_loop().time()
        if reason != self._waiting or now_s - self._reminded_s >= WAITING_REMINDER_S:
            logger.warning("%s", reason)
            self._reminded_s = now_s
        self._waiting = reason

    def closing(
        self, step: int, *, loss_sum: float, loss_tokens: int, ledgers: Audit
    ) -> None:
        """The ledgers of ``step`` are complete; the commit will decide it."""
        self._closing = {
            "step": step + 1,
            "train_loss": loss_sum / loss_tokens,
            "tokens": loss_tokens,
            "learning_rate": self._learning_rate(step),
            "microbatches_expected": ledgers.expected,
            "microbatches_counted_once": ledgers.counted_once,
            "microbatches_lost": ledgers.lost,
            "microbatches_counted_twice": ledgers.counted_twice,
            **self._latency(),
        }

    def _latency(self) -> dict[str, float]:
        """How long the step's microbatches took, those that this trainer has sent."""
        if not self._latencies_s:
            return {}
        median_s, late_s = np.percentile(self._latencies_s, (50, 95))
        return {"microbatch_p50_s": float(median_s), "microbatch_p95_s": float(late_s)}

    def skipping(self, step: int) -> None:
        """``step`` is to be committed without an update."""
        self._closing = {"step": step + 1, "skipped": True}

    def collected(self, reports: Iterable[Report]) -> None:
        """Records the step that was being closed, if one peer has committed it.

        One is enough to decide a step; its answer to the commit may have been lost.
        """
        for report in reports:
            commit = report.last_commit
            if commit and self._closing and commit.step + 1 == self._closing["step"]:
                record, self._closing = self._closing, None
                self._finish(record, commit.gradient_norm)

    def committed(self, commit: CommitRecord) -> None:
        """A peer has answered this commit: then the step ends.

        It may have answered in vain, as one does that joins, or dies: no record yet.
        """
        if self._closing and commit.step + 1 == self._closing["step"]:
            self._closing["time_s"] = asyncio.get_running_loop().time()

    def _finish(self, record: dict[str, Any], gradient_norm: float | None) -> None:
        """Writes the record, or keeps it until the validation that it is due for."""
        ended_s = record.setdefault("time_s", asyncio.get_running_loop().time())
        begun_s, self._step_start_s = self._step_start_s, None
        self._begin_what_is_ahead(record["step"], ended_s)
        if gradient_norm is None:
            self.totals.skipped_steps += 1
            self.totals.steps += 1
        elif "skipped" in record:
            logger.warning(
                "step %d is not skipped: another trainer had committed it",
                record["step"] - 1,
            )
            return
        else:
            step_s = 0.0 if begun_s is None else ended_s - begun_s
            record["gradient_norm"] = gradient_norm
            record["step_s"] = step_s
            record["tokens_per_s"] = record["tokens"] / step_s if step_s else 0.0
            self._add_to_totals(record)
        every = self._config.validation.every_steps
        last = record["step"] == self._config.steps
        if last or (every and record["step"] % every == 0):
            self._unvalidated = record
        else:
            self._steps.write(**record)

    def _begin_what_is_ahead(self, step: int, ended_s: float) -> None:
        """The step after the one that is over, if it was begun; timed from there on.

        Another trainer may have fed all of it ahead, and this one nothing.
        """
        ahead, self._ahead = self._ahead, None
        if not self._config.swarm.delayed_updates or step == self._config.steps:
            return
        if ahead is None or ahead.step != step:
            ahead = _Ahead(step)
        self._step, self._answered = step, ahead.answered
        self._latencies_s = ahead.latencies_s
        self._step_start_s = ended_s

    def _add_to_totals(self, record: dict[str, Any]) -> None:
        totals, past = self.totals, self.totals.microbatches
        if totals.steps:
            totals.timed_tokens += record["tokens"]
            totals.timed_s += record["step_s"]
        totals.steps += 1
        totals.final_train_loss = record["train_loss"]
        totals.microbatches = Audit(
            expected=past.expected + record["microbatches_expected"],
            counted_once=past.counted_once + record["microbatches_counted_once"],
            lost=past.lost + record["microbatches_lost"],
            counted_twice=past.counted_twice + record["microbatches_counted_twice"],
        )

    @contextlib.contextmanager
    def validating(self) -> Iterator[None]:
        """What this takes is no part of a step that was begun ahead."""
        clock = asyncio.get_running_loop().time
        began_s = clock()
        try:
            yield
        finally:
            if self._step_start_s is not None:
                self._step_start_s += clock() - began_s

    def validated(self, losses: Mapping[str, float] | None) -> None:
        """Args:
        losses: By metric; None when the model gives non-finite values.
        """
        record, self._unvalidated = self._unvalidated, None
        assert record is not None
        none = dict.fromkeys(self._config.validation.metrics.values())
        self.totals.validation_losses = none | dict(losses or {})
        self._steps.write(**record, **self.totals.validation_losses)

    async def watch(self) -> None:
        """Writes the swarm as the leader sees it, every second, for ever."""
        while True:
            self._swarm.write(**self._snapshot())
            await asyncio.sleep(SWARM_PERIOD_S)

    def _snapshot(self) -> dict[str, Any]:
        stages = [
            {
                "stage": stage,
                "peers": [
                    {
                        "peer": peer,
                        "name": record.name,
                        "state": record.state,
                        "step": record.step,
                        "queue": record.queue,
                        "tokens_per_s": record.tokens_per_s,
                    }
                    for peer, record in sorted(peers.items())
                ],
            }
            for stage, peers in sorted(self._view.stages.items())
        ]
        return {
            "time_s": asyncio.get_running_loop().time(),
            "step": self._step,
            "steps": self._config.steps,
            "answered": len(self._answered),
            "microbatches_per_step": self._config.microbatches_per_step,
            "stages": stages,
            "waiting": self._waiting,
        }

    def _say_what_goes_on(self, step: int) -> None:
        """After a wait, and when this trainer begins in the middle of the run."""
        if self._waiting is not None or (self._begins and step):
            logger.warning("the run goes on with step %d", step + 1)
        self._waiting, self._begins = None, False
