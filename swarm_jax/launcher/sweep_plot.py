"""Losses of a sweep as a picture: the last ones with their spread, and the curves."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from swarm_jax.launcher.runs import Run, load_run
from swarm_jax.launcher.sweep_results import Row

LINES = ("-", "--", ":", "-.")
COLORS = 10


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws into a PNG; equal runs give an equal file.

    Left, the loss at the end: each seed as a dot, their mean and standard deviation as
    bars, and a line down from the first row. Right, means over seeds by step.
    Validation loss where all runs have it, else training loss.
    """
    runs = [[load_run(Path(folder)) for folder in row.folders] for row in rows]
    validated = all(run.validation_losses for group in runs for run in group)
    curves = [[_curve(run, validated) for run in group] for group in runs]
    figure = Figure(figsize=(15, max(4, 2 + 0.3 * len(rows))), layout="constrained")
    ends, courses = figure.subplots(1, 2)
    _draw_ends(ends, rows, curves)
    _draw_courses(courses, rows, curves)
    figure.legend(loc="outside right upper", fontsize="small")
    name = "validation loss" if validated else "training loss"
    ends.set_xlabel(f"{name} at the end, nats per token")
    courses.set_ylabel(f"{name}, nats per token (mean over seeds)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png", metadata={"Software": None})


def _curve(run: Run, validated: bool) -> dict[int, float]:
    return run.validation_losses if validated else run.losses


def _style(index: int) -> dict[str, str]:
    line = LINES[index // COLORS % len(LINES)]
    return {"color": f"C{index % COLORS}", "linestyle": line}


def _draw_ends(
    axes: Axes, rows: Sequence[Row], curves: Sequence[Sequence[dict[int, float]]]
) -> None:
    for index, group in enumerate(curves):
        last = [curve[max(curve)] for curve in group]
        deviation = statistics.stdev(last) if len(last) > 1 else 0.0
        color = _style(index)["color"]
        mean = statistics.fmean(last)
        if index == 0:
            axes.axvline(mean, color=color, linewidth=0.5)
        axes.errorbar(mean, index, xerr=deviation, fmt="|", color=color, capsize=3)
        axes.plot(last, [index] * len(last), ".", color=color)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def _draw_courses(
    axes: Axes, rows: Sequence[Row], curves: Sequence[Sequence[dict[int, float]]]
) -> None:
    for index, group in enumerate(curves):
        steps = sorted(set.intersection(*(set(curve) for curve in group)))
        means = [statistics.fmean(curve[step] for curve in group) for step in steps]
        label = rows[index].label
        axes.plot(steps, means, label=label, linewidth=1, **_style(index))
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
