"""What the runs of a sweep came to: means over seeds, as tables and as figures."""

import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from swarm_jax.launcher.runs import load_run
from swarm_jax.launcher.variations import Variation

UNITS = "Losses are nats per token, bytes per token and boundary between stages."

WIDE = 10_000
"""Columns of a page on which no row is broken or cut."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of a sample; of one value there is none."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation)


@dataclass(frozen=True, slots=True)
class Row:
    """Runs that differ in their seed alone. None: the runs did not say.

    Attributes:
        label: What they vary.
        folders: Their run folders; those that are not done are left out.
        train_loss, validation_loss: At the last step, nats per token.
        tokens_per_s: Mean over the runs, each without its first steps
            (``runs.COMPILING_STEPS``).
        bytes_there, bytes_back: Of activations and of their gradients, per token and
            boundary between stages.
        parameters: Of the whole model.
    """

    label: str
    folders: tuple[str, ...]
    train_loss: Spread
    validation_loss: Spread | None
    tokens_per_s: float
    bytes_there: float | None
    bytes_back: float | None
    parameters: int | None


def read_rows(runs: Sequence[tuple[Variation, Path]]) -> list[Row]:
    """Groups finished runs by label, in the order of their first.

    Args:
        runs: With the run folder of each; those without a summary are left out.
    """
    groups: dict[str, list[Path]] = {}
    for variation, folder in runs:
        if (folder / "summary.json").exists():
            groups.setdefault(variation.label, []).append(folder)
    return [_row(label, folders) for label, folders in groups.items()]


def results_text(rows: Sequence[Row]) -> str:
    """A table for people, with its units; lines are as long as they need to be."""
    return "\n".join([*_lines(rows, box.HEAVY_HEAD), UNITS])


def markdown(rows: Sequence[Row]) -> str:
    """The same table for a page."""
    return "\n".join([*_lines(rows, box.MARKDOWN), "", UNITS, ""])


def _lines(rows: Sequence[Row], style: box.Box) -> list[str]:
    """A row for each label: mean and standard deviation over its seeds."""
    table = Table(box=style)
    table.add_column("variant", no_wrap=True)
    for name in (
        "seeds",
        "train loss",
        "validation loss",
        "tokens/s",
        "bytes there",
        "and back",
        "parameters",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.label,
            str(len(row.folders)),
            _spread_text(row.train_loss),
            _spread_text(row.validation_loss),
            _number(row.tokens_per_s),
            _number(row.bytes_there),
            _number(row.bytes_back),
            _number(row.parameters),
        )
    page = Console(file=io.StringIO(), width=WIDE, color_system=None)
    page.print(table)
    return [line.strip() for line in page.file.getvalue().splitlines() if line.strip()]


def _row(label: str, folders: Sequence[Path]) -> Row:
    summaries = [json.loads((f / "summary.json").read_text()) for f in folders]
    return Row(
        label=label,
        folders=tuple(map(str, folders)),
        train_loss=_spread(summaries, "final_train_loss"),
        validation_loss=_spread(summaries, "validation_loss"),
        tokens_per_s=statistics.fmean(load_run(f).tokens_per_s for f in folders),
        bytes_there=_mean(summaries, "activation_bytes_per_token_per_boundary"),
        bytes_back=_mean(summaries, "gradient_bytes_per_token_per_boundary"),
        parameters=summaries[0].get("parameters"),
    )


def _spread(summaries: Sequence[dict[str, Any]], key: str) -> Spread | None:
    """Of a figure that all runs gave; else None."""
    values = [summary.get(key) for summary in summaries]
    return None if None in values else Spread.of(values)


def _mean(summaries: Sequence[dict[str, Any]], key: str) -> float | None:
    spread = _spread(summaries, key)
    return None if spread is None else spread.mean


def _spread_text(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.deviation is None:
        return f"{spread.mean:.4f}"
    return f"{spread.mean:.4f} +- {spread.deviation:.4f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.{0 if value == round(value) else 1}f}"
