"""Several runs side by side: a table, a report, and a picture.

Losses are compared after equal numbers of tokens, so that runs whose steps are of
different sizes can be, too.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from swarm_jax.launcher.runs import COMPILING_STEPS, Run

SHOWN_POINTS = 10
MB = 1e6

MEMORY_ROWS = (
    ("peak memory, largest process", "peak_rss_bytes"),
    ("  all processes together", "total_peak_rss_bytes"),
    ("peak device memory, largest process", "peak_device_bytes"),
    ("  all processes together", "total_peak_device_bytes"),
)


def common_tokens(runs: Sequence[Run]) -> list[int]:
    """Where the first run's steps ended, as far as every run has a loss."""
    begin = max(min(_ends(run)) for run in runs)
    end = min(max(_ends(run)) for run in runs)
    return [tokens for tokens in _ends(runs[0]) if begin <= tokens <= end]


def largest_difference(first: Run, other: Run) -> tuple[float, int] | None:
    """Largest difference of the training losses, and after how many tokens.

    None: there is no number of tokens after which both have a loss.
    """
    differences = [
        (abs(first.loss_after(tokens) - other.loss_after(tokens)), tokens)
        for tokens in common_tokens([first, other])
    ]
    return max(differences, key=lambda found: found[0], default=None)


def comparison_report(runs: Sequence[Run]) -> dict[str, Any]:
    """All that the table says, unrounded, for programs.

    Returns:
        ``runs``, one dict for each; ``train_losses``: dicts of ``tokens`` and
        ``losses``, one for each run, after each of the first run's steps.
    """
    return {
        "skipped_steps": COMPILING_STEPS,
        "runs": [_run_report(runs[0], run) for run in runs],
        "train_losses": [
            {"tokens": tokens, "losses": [run.loss_after(tokens) for run in runs]}
            for tokens in common_tokens(runs)
        ],
    }


def _run_report(first: Run, run: Run) -> dict[str, Any]:
    difference = None if run is first else largest_difference(first, run)
    return {
        "run": run.name,
        "experiment": run.experiment,
        "steps": max(run.losses),
        "tokens": max(_ends(run)),
        "final_train_loss": run.losses[max(run.losses)],
        "largest_difference": difference and difference[0],
        "largest_difference_after_tokens": difference and difference[1],
        "validation_losses": [
            {"tokens": run.tokens[step], "loss": loss}
            for step, loss in run.validation_losses.items()
        ],
        "tokens_per_s": run.tokens_per_s,
        "memory": run.memory and dataclasses.asdict(run.memory),
    }


def comparison_table(runs: Sequence[Run]) -> Table:
    """Losses after equal tokens, differences from the first run, speeds, memory."""
    table = Table("", *_labels(runs))
    for tokens in _spread(common_tokens(runs), SHOWN_POINTS):
        losses = (f"{run.loss_after(tokens):.6f}" for run in runs)
        table.add_row(f"train loss after {tokens:,} tokens", *losses)
    table.add_section()
    differences = [_difference_text(runs[0], run) for run in runs[1:]]
    table.add_row("largest difference", "-", *differences)
    table.add_row("validation loss", *(_validation_text(run) for run in runs))
    speeds = (f"{run.tokens_per_s:,.0f}" for run in runs)
    table.add_row(f"tokens/s after step {COMPILING_STEPS}", *speeds)
    table.add_row("last step", *(str(max(run.losses)) for run in runs))
    table.add_section()
    table.add_row("processes", *(_memory_text(run, "processes") for run in runs))
    for label, name in MEMORY_ROWS:
        if any(_megabytes(run, name) is not None for run in runs):
            table.add_row(label, *(_memory_text(run, name) for run in runs))
    table.add_row("experiment", *(run.experiment or "-" for run in runs))
    return table


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draws losses by tokens (dots: validation), speeds, and memory, into a PNG."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    curves, speeds, memory = figure.subplots(1, 3, width_ratios=[3, 1, 1])
    colors = [f"C{index}" for index in range(len(runs))]
    for index, (run, label) in enumerate(zip(runs, _labels(runs), strict=True)):
        # The first lie beneath: wider, so that equal curves can all be seen.
        line = {"color": colors[index], "linewidth": 1 + 2 * (len(runs) - 1 - index)}
        curves.plot(_ends(run), list(run.losses.values()), label=label, **line)
        places = [run.tokens[step] for step in run.validation_losses]
        dots = {"color": colors[index], "markersize": 4 + 3 * (len(runs) - 1 - index)}
        curves.plot(places, list(run.validation_losses.values()), "o", **dots)
    curves.set_xlabel("tokens")
    curves.set_ylabel("loss, nats per token (dots: validation)")
    curves.grid(alpha=0.3)
    curves.legend()
    bars = range(len(runs))
    speeds.bar(bars, [run.tokens_per_s for run in runs], color=colors)
    speeds.set_title("tokens/s")
    on_device = any(_megabytes(run, "peak_device_bytes") is not None for run in runs)
    where = "device" if on_device else "rss"
    name = f"total_peak_{where}_bytes"
    used = [_megabytes(run, name) for run in runs]
    memory.bar(bars, [np.nan if mb is None else mb for mb in used], color=colors)
    kind = "device memory" if on_device else "memory"
    memory.set_title(f"peak {kind}, MB,\nall processes together")
    for axes in (speeds, memory):
        axes.set_xticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def _labels(runs: Sequence[Run]) -> list[str]:
    """The folders, without their parent where they all have the same."""
    folders = [Path(run.name) for run in runs]
    if len({folder.parent for folder in folders}) > 1:
        return [run.name for run in runs]
    return [folder.name for folder in folders]


def _ends(run: Run) -> list[int]:
    return [run.tokens[step] for step in run.losses]


def _spread(points: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of them, evenly spread, the first and the last included."""
    if len(points) <= count:
        return list(points)
    return [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]


def _difference_text(first: Run, other: Run) -> str:
    found = largest_difference(first, other)
    if found is None:
        return "no tokens in common"
    return f"{found[0]:.2e} after {found[1]:,} tokens"


def _validation_text(run: Run) -> str:
    if not run.validation_losses:
        return "-"
    step = max(run.validation_losses)
    return f"{run.validation_losses[step]:.4f} after {run.tokens[step]:,} tokens"


def _megabytes(run: Run, name: str) -> float | None:
    found = run.memory and getattr(run.memory, name)
    return None if found is None else found / MB


def _memory_text(run: Run, name: str) -> str:
    if name == "processes":
        return "-" if run.memory is None else str(run.memory.processes)
    found = _megabytes(run, name)
    return "-" if found is None else f"{found:,.0f} MB"
