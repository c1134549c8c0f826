"""The table at the end of a run, from ``summary.json``."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from rich.table import Table

from swarm_jax.launcher.runs import recorded_memory, start_to_ready_s
from swarm_jax.metrics import VALIDATION_LOSS, is_validation, write_json

ACTIVATIONS = "activation_bytes_per_token_per_boundary"
GRADIENTS = "gradient_bytes_per_token_per_boundary"

ROWS = (
    ("steps", "steps", "{:,}"),
    ("final train loss", "final_train_loss", "{:.4f}"),
    ("validation loss", "validation_loss", "{:.4f}"),
    ("  of a bigram model", "bigram_loss", "{:.4f}"),
    ("tokens per second", "tokens_per_s", "{:,.0f}"),
    ("bytes per token and boundary, there", ACTIVATIONS, "{:,.1f}"),
    ("  and back", GRADIENTS, "{:,.1f}"),
    ("microbatches expected", "microbatches_expected", "{:,}"),
    ("  counted once", "microbatches_counted_once", "{:,}"),
    ("  lost", "microbatches_lost", "{:,}"),
    ("  counted twice", "microbatches_counted_twice", "{:,}"),
    ("steps without a record", "steps_without_record", "{:,}"),
    ("killed servers", "kills", "{:,}"),
    ("stopped servers", "stops", "{:,}"),
    ("servers that left", "leaves", "{:,}"),
    ("  not cleanly", "unclean_leaves", "{:,}"),
    ("killed trainers", "trainer_kills", "{:,}"),
    ("stopped trainers", "trainer_stops", "{:,}"),
    ("trainers that left", "trainer_leaves", "{:,}"),
    ("servers that crashed", "crashes", "{:,}"),
    ("servers that joined", "joined_peers", "{:,}"),
    ("  to first microbatch, median", "join_to_first_microbatch_s", "{:.2f} s"),
    ("faults", "faults", "{:,}"),
    ("  recovered from", "recoveries", "{:,}"),
    ("  until a whole step had 0.9 of the", "recovery_p50_s", "p50 {:.2f} s"),
    ("  survivors' calculated best", "recovery_p95_s", "p95 {:.2f} s"),
    ("fault-free tokens per second", "fault_free_tokens_per_s", "{:,.0f}"),
    ("  measured before the first fault, for", "fault_free_s", "{:.1f} s"),
    ("throughput / fault-free", "throughput_vs_fault_free", "{:.3f}"),
    ("throughput / survivors' best", "throughput_vs_survivors", "{:.3f}"),
    ("largest difference from control's loss", "loss_vs_control", "{:.1e} of it"),
    ("  not known", "loss_vs_control_reason", "{}"),
    ("start of a server to ready, median", "start_to_ready_s", "{:.1f} s"),
    ("wall time", "wall_s", "{:.1f} s"),
)
"""Label, key and format; losses are nats per token. Absent keys are left out."""


def finish_summary(workdir: Path, wall_s: float) -> dict[str, Any]:
    """Puts what the trainer does not know into its ``summary.json``.

    Wall time, memory of all processes, and how long servers took from their start until
    they could be given microbatches (median).

    The trainer's own time is shorter than what the user saw: it does not know of the
    processes started before it.
    """
    path = workdir / "summary.json"
    summary = json.loads(path.read_text()) | {"wall_s": wall_s}
    memory = recorded_memory(workdir)
    if memory is not None:
        summary |= dataclasses.asdict(memory)
    if times_s := start_to_ready_s(workdir).values():
        summary["start_to_ready_s"] = statistics.median(times_s)
    write_json(path, summary)
    return summary


def summary_table(summary: dict[str, Any], workdir: Path) -> Table:
    """The summary for people, with where the files are."""
    table = Table(show_header=False, title="Summary", title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, key, form in ROWS:
        if summary.get(key) is not None:
            table.add_row(label, form.format(summary[key]))
        if key == VALIDATION_LOSS:
            for name in filter(is_validation, summary):
                if name != key and summary[name] is not None:
                    table.add_row(f"  {name.split('/')[1]}", f"{summary[name]:.4f}")
    table.add_row("summary", str(workdir / "summary.json"))
    table.add_row("metrics", str(workdir / "metrics"))
    table.add_row("logs", str(workdir / "logs"))
    return table
