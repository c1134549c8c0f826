"""Tokens per second of two ways to train on one machine, in turn.

In turn, because other work on the machine comes and goes: A B A B has it fall on both.
"""

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from swarm_jax.launcher.processes import ProcessDied, Processes
from swarm_jax.launcher.runs import COMPILING_STEPS, load_run


def measure(name: str, command: Sequence[str], workdir: Path) -> float:
    """Runs one training to its end.

    Args:
        name: Of its log, ``WORKDIR.parent/NAME.log``.
        command: Arguments after ``python -m``; ``--workdir`` is added.

    Returns:
        Its tokens per second, without the first steps (``runs.COMPILING_STEPS``).

    Raises:
        ProcessDied: It failed.
    """
    with Processes(workdir.parent) as processes:
        full_command = [sys.executable, "-m", *command, "--workdir", str(workdir)]
        child = processes.start(name, full_command, {})
        if child.popen.wait() != 0:
            raise ProcessDied(child.obituary())
    return load_run(workdir).tokens_per_s


def swarm_against_single(
    experiment: Sequence[str],
    device: str,
    repeats: int,
    folder: Path,
    console: Console,
) -> dict[str, Any]:
    """Measures a local swarm, one peer per stage, against one process; in turn.

    Args:
        experiment: ``["--config", FILE, ...]`` for both.
        device: Key of ``flags.PLATFORMS``, for both.
        repeats: How often each is run.
        folder: Where the run folders go.

    Returns:
        The report: speeds of both, their ratios, and what they were measured on.
    """
    shared = [*experiment, "--device", device]
    swarm = ["scripts.launch", *shared, "--peers-per-stage", "1"]
    single = ["scripts.train_single", *shared]
    speeds: dict[str, list[float]] = {"swarm": [], "single": []}
    for repeat in range(repeats):
        for system, command in (("swarm", swarm), ("single", single)):
            name = f"{system}{repeat}"
            speeds[system].append(measure(name, command, folder / name))
            console.print(f"{name}: {speeds[system][-1]:,.0f} tokens/s")
    ratios = [a / b for a, b in zip(speeds["swarm"], speeds["single"], strict=True)]
    return {
        "swarm_tokens_per_s": speeds["swarm"],
        "single_tokens_per_s": speeds["single"],
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
    } | circumstances(experiment, device)


def circumstances(experiment: Sequence[str], device: str) -> dict[str, Any]:
    """What figures of an experiment were measured with, and on."""
    what = {"skipped_steps": COMPILING_STEPS, "experiment": list(experiment)}
    return what | machine(device)


def machine(device: str) -> dict[str, Any]:
    """What figures were measured on, and when."""
    return {
        "device": device,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": version("jax"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def report_table(report: dict[str, Any]) -> Table:
    """The report for people."""
    table = Table(
        "run",
        "swarm, tokens/s",
        "single process, tokens/s",
        "ratio",
        caption=f"without the first {report['skipped_steps']} steps of each run "
        "(compilation, connecting)",
    )
    rows = zip(
        report["swarm_tokens_per_s"],
        report["single_tokens_per_s"],
        report["ratios"],
        strict=True,
    )
    for index, (swarm, single, ratio) in enumerate(rows):
        table.add_row(str(index), f"{swarm:,.0f}", f"{single:,.0f}", f"{ratio:.3f}")
    table.add_section()
    table.add_row("median", "", "", f"{report['median_ratio']:.3f}")
    return table
