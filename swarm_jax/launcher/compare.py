"""Several runs side by side: a table, and a picture of their curves."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from swarm_jax.launcher.runs import COMPILING_STEPS, Run

SHOWN_STEPS = 10


def matching_steps(runs: Sequence[Run]) -> list[int]:
    """Steps that all runs have."""
    return sorted(set.intersection(*(set(run.losses) for run in runs)))


def largest_difference(first: Run, other: Run) -> tuple[float, int] | None:
    """Largest difference of the training losses and its step; None: no step matches."""
    steps = matching_steps([first, other])
    if not steps:
        return None
    step = max(steps, key=lambda s: abs(first.losses[s] - other.losses[s]))
    return abs(first.losses[step] - other.losses[step]), step


def comparison_table(runs: Sequence[Run]) -> Table:
    """Losses at matching steps, differences from the first run, speeds."""
    table = Table("", *(run.name for run in runs))
    for step in _spread(matching_steps(runs), SHOWN_STEPS):
        losses = (f"{run.losses[step]:.6f}" for run in runs)
        table.add_row(f"train loss, step {step}", *losses)
    table.add_section()
    differences = [_difference_text(runs[0], run) for run in runs[1:]]
    table.add_row("largest difference", "-", *differences)
    table.add_row("validation loss", *(_validation_text(run) for run in runs))
    speeds = (f"{run.tokens_per_s:,.0f}" for run in runs)
    table.add_row(f"tokens/s after step {COMPILING_STEPS}", *speeds)
    table.add_row("last step", *(str(max(run.losses)) for run in runs))
    return table


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draws training losses as lines and validation losses as dots, into a PNG."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for index, run in enumerate(runs):
        color = f"C{index}"
        axes.plot(
            list(run.losses), list(run.losses.values()), color=color, label=run.name
        )
        axes.plot(
            list(run.validation_losses),
            list(run.validation_losses.values()),
            "o",
            color=color,
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token (dots: validation)")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of them, evenly spread, the first and the last included."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _difference_text(first: Run, other: Run) -> str:
    found = largest_difference(first, other)
    if found is None:
        return "no common step"
    return f"{found[0]:.2e} at step {found[1]}"


def _validation_text(run: Run) -> str:
    if not run.validation_losses:
        return "-"
    step = max(run.validation_losses)
    return f"{run.validation_losses[step]:.4f} at step {step}"
