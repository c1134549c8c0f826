"""The paper's ablation of rebalancing: what is compared, the table and the picture."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from swarm_jax.config import RebalancingConfig
from swarm_jax.sim.market import HOUR_S, draw_trace
from swarm_jax.sim.replay import Costs, Replay, Scenario, percent
from swarm_jax.sim.strategies import (
    Strategy,
    by_gain,
    by_queue,
    where_most_loaded,
    where_needed,
    without,
)

PAPER = {
    "none": (82.7, 99.0, 45.4),
    "T=300": (95.8, 99.4, 88.9),
    "T=60": (97.6, 99.8, 91.7),
}
"""Overall, first and last hour; recalled, not seen, but for 82.7 and 95.8."""

ABLATION = ("none", "T=300", "T=60", "ours")

CURVE_S = 900.0
"""Of this much time is each point of the picture."""

Case = tuple[Strategy, Scenario]


def cases(scenario: Scenario) -> dict[str, Case]:
    """The four of the ablation, and what else shows where the figures come from."""
    rules = RebalancingConfig()
    ours = by_gain(rules)
    at_once = dataclasses.replace(
        rules, period_s=1.0, gain_threshold=0.0, measurement_error=0.0
    )
    measured = dataclasses.replace(scenario.costs, drain_s=0.75, compile_s=1.84)
    half = dataclasses.replace(scenario.costs, state_bytes=1.5e9)
    tenth = dataclasses.replace(scenario.costs, state_bytes=0.3e9)
    unseen = dataclasses.replace(scenario.costs, step_s=1.0, expiry_s=1.0)

    def costing(costs: Costs) -> Scenario:
        return dataclasses.replace(scenario, costs=costs)

    return {
        "none": (without(), scenario),
        "T=300": (by_queue(300.0), scenario),
        "T=60": (by_queue(60.0), scenario),
        "ours": (ours, scenario),
        "T=300, newcomers placed": (by_queue(300.0, where_most_loaded), scenario),
        "T=60, newcomers placed": (by_queue(60.0, where_most_loaded), scenario),
        "ours, newcomers placed": (by_gain(rules, where_needed), scenario),
        "ours, every 60 s": (
            by_gain(dataclasses.replace(rules, period_s=60.0)),
            scenario,
        ),
        "limit: all within 1 s": (by_gain(at_once), costing(unseen)),
        "T=60, migration in 53 s": (by_queue(60.0), costing(measured)),
        "ours, migration in 53 s": (ours, costing(measured)),
        "ours, migration in 42 s": (ours, costing(half)),
        "ours, migration in 22 s": (ours, costing(tenth)),
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """One replay: throughput over the best allocation's in percent, moves per hour.

    Attributes:
        curve_pct: The same for each ``CURVE_S``.
        peers: How many had started at the ends of these.
    """

    overall_pct: float
    first_hour_pct: float
    last_hour_pct: float
    moves_per_hour: float
    curve_pct: tuple[float, ...]
    peers: tuple[int, ...]


def outcome_of(scenario: Scenario, name: str, seed: int) -> Outcome:
    """Replays one seed of one of ``cases(scenario)``."""
    strategy, scenario = cases(scenario)[name]
    replay = Replay(scenario, strategy, draw_trace(scenario.market, seed), seed)
    samples = replay.run()
    end_s = scenario.market.hours * HOUR_S
    ends_s = np.arange(CURVE_S, end_s + 1, CURVE_S)
    last = np.searchsorted([sample.at_s for sample in samples], ends_s) - 1
    return Outcome(
        overall_pct=percent(samples, 0.0, end_s),
        first_hour_pct=percent(samples, 0.0, HOUR_S),
        last_hour_pct=percent(samples, end_s - HOUR_S, end_s),
        moves_per_hour=len(replay.moves) / scenario.market.hours,
        curve_pct=tuple(percent(samples, s - CURVE_S, s) for s in ends_s),
        peers=tuple(samples[i].peers for i in last),
    )


def rows(outcomes: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    """Means over seeds, one row for each strategy."""
    fields = ("overall_pct", "first_hour_pct", "last_hour_pct", "moves_per_hour")
    return [
        {"strategy": name, "seeds": len(replays)}
        | {
            field: round(statistics.fmean(getattr(r, field) for r in replays), 2)
            for field in fields
        }
        for name, replays in outcomes.items()
    ]


def table(found: Sequence[Mapping[str, Any]]) -> Table:
    """The rows, beside what is recalled of the paper."""
    shown = Table(
        box=box.SIMPLE,
        pad_edge=False,
        title="% of the best allocation's throughput",
        caption="paper: overall, first hour, last hour; recalled, not seen",
    )
    shown.add_column("strategy", no_wrap=True)
    for heading in ("overall", "first h", "last h", "moves/h", "paper"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in found:
        recalled = PAPER.get(row["strategy"])
        shown.add_row(
            row["strategy"],
            f"{row['overall_pct']:.1f}",
            f"{row['first_hour_pct']:.1f}",
            f"{row['last_hour_pct']:.1f}",
            f"{row['moves_per_hour']:.1f}",
            " ".join(f"{value:.1f}" for value in recalled) if recalled else "-",
        )
    return shown


def plot(outcomes: Mapping[str, Sequence[Outcome]], path: Path) -> None:
    """Throughput of each strategy over time, mean of seeds, and below it the traces."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for name, replays in outcomes.items():
        curve = np.mean([replay.curve_pct for replay in replays], axis=0)
        hours = (np.arange(len(curve)) + 0.5) * CURVE_S / HOUR_S
        above.plot(hours, curve, label=name)
    above.set_ylabel("% of the best allocation's throughput")
    above.grid(alpha=0.3)
    above.legend(loc="lower left")
    for replay in next(iter(outcomes.values())):
        below.plot(hours, replay.peers, color="gray", alpha=0.5, linewidth=0.8)
    below.set_ylabel("peers, each seed")
    below.set_xlabel("hours")
    below.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png")
