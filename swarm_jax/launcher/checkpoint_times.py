"""What saving and moving cost a swarm of processes on this machine."""

import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from swarm_jax.launcher.benchmark import measure
from swarm_jax.launcher.processes import Child, ProcessDied, Processes
from swarm_jax.launcher.runs import COMPILING_STEPS
from swarm_jax.launcher.workdir import BOOTSTRAP_FILE
from swarm_jax.metrics import read_records

PYTHON = (sys.executable, "-m")
LOOPBACK = ("--host_maddrs", "/ip4/127.0.0.1/tcp/0")
MOVER = "stage0-1"
MANY_STEPS = "--config.steps=1000000"
PARTS = ("drain", "prepare", "state", "first_microbatch")
POLL_S = 0.1
PATIENCE_S = 600.0


def save_stall(
    experiment: Sequence[str],
    device: str,
    repeats: int,
    tokens_per_step: int,
    folder: Path,
    console: Console,
) -> dict[str, Any]:
    """Step times of a swarm that saves in every step, and of one that never does.

    In turn, one peer per stage. A save that is not over when the next is due delays
    that one, so the swarm saves all the time.

    Returns:
        Seconds per step of both, the added seconds as a share of a step, how many saves
        there were and what they took.
    """
    command = ["scripts.launch", *experiment, "--device", device]
    command += ["--peers-per-stage", "1", "--config.checkpoint.keep_last=1"]
    step_s: dict[str, list[float]] = {"saving": [], "plain": []}
    save_s: list[float] = []
    for repeat in range(repeats):
        for kind, every_steps in (("saving", 1), ("plain", 0)):
            name = f"{kind}{repeat}"
            every = f"--config.checkpoint.every_steps={every_steps}"
            speed = measure(name, [*command, every], folder / name)
            step_s[kind].append(tokens_per_step / speed)
            console.print(f"{name}: {step_s[kind][-1]:.3f} s per step")
        save_s += saves_in(folder / f"saving{repeat}" / "logs" / "trainer.log")
    if not save_s:
        raise ProcessDied(f"nothing was saved: see the logs in {folder}")
    pairs = zip(step_s["saving"], step_s["plain"], strict=True)
    shares = [saving / plain - 1 for saving, plain in pairs]
    return {
        "saving_step_s": step_s["saving"],
        "plain_step_s": step_s["plain"],
        "stall_shares": shares,
        "median_stall_share": statistics.median(shares),
        "saves": len(save_s),
        "median_save_s": statistics.median(save_s),
    }


def saves_in(log: Path) -> list[float]:
    """Seconds of each save that a trainer's log tells of."""
    return [
        float(s) for s in re.findall(r"saved step \d+ in ([\d.]+) s", log.read_text())
    ]


def migrations(
    experiment: Sequence[str],
    device: str,
    moves: int,
    folder: Path,
    console: Console,
) -> list[dict[str, float]]:
    """Moves one of four peers from stage 0 to stage 1 and back, while they train.

    Returns:
        Of each move its seconds in all (``migration_s``) and by ``PARTS``.

    Raises:
        ProcessDied: The swarm died, or refused a move.
    """
    workdir = folder / "moving"
    experiment = [*experiment, MANY_STEPS, "--config.tuning.rebalancing.strategy=off"]
    experiment.append("--config.checkpoint.every_steps=0")
    launch = [*experiment, "--device", device, "--peers-per-stage", "2"]
    launch += ["--workdir", str(workdir)]
    with Processes(folder) as processes:
        command = [*PYTHON, "scripts.launch", *launch]
        swarm = processes.start("moving", command, {})
        steps = workdir / "metrics" / "trainer.jsonl"
        _wait(lambda: len(_records(steps)) > COMPILING_STEPS, swarm)
        ready = json.loads((workdir / BOOTSTRAP_FILE).read_text())
        network = ["--initial_peers", *ready["initial_peers"], *LOOPBACK]
        for move in range(moves):
            stage = str(1 - move % 2)
            wish = [*experiment, *network, "--peer", MOVER, "--stage", stage]
            name = f"migrate{move}"
            child = processes.start(name, [*PYTHON, "scripts.migrate", *wish], {})
            if child.popen.wait() != 0:
                raise ProcessDied(child.obituary())
            _wait(lambda move=move: len(_moves(workdir)) > move, swarm)
            console.print(f"{name}: {_moves(workdir)[-1]['migration_s']:.2f} s")
        return _moves(workdir)


def times_table(report: dict[str, Any]) -> Table:
    """The report of ``scripts.benchmark checkpoints`` for people."""
    stall, store = report["stall"], report["store"]
    shown = Table("what", "each time", "median")
    for label, key in (("saving", "saving_step_s"), ("not saving", "plain_step_s")):
        shown.add_row(f"step, {label}, s", *_row(stall[key], "{:.3f}"))
    shown.add_row("added while saving, % of a step", *_percent(stall["stall_shares"]))
    shown.add_row(f"a save ({stall['saves']}), s", "", f"{stall['median_save_s']:.2f}")
    for size in store:
        shown.add_section()
        for what in ("save", "restore"):
            speeds = _row(size[f"{what}_mb_per_s"], "{:,.0f}")
            shown.add_row(f"{what} {size['state_mb']:,} MB, MB/s", *speeds)
    shown.add_section()
    moves = report["migrations"]
    for part in ("", *(f"{part}_" for part in PARTS)):
        label = part.strip("_").replace("_", " ") or "migration"
        times_s = [move[f"migration_{part}s"] for move in moves]
        shown.add_row(f"{label}, s", *_row(times_s, "{:.2f}"))
    shown.caption = (
        "MB are 10^6 bytes; hashing is included; what was just written is read from "
        "the system's memory. A mover's programs come from the compilation cache, from "
        "the third move on from its own memory"
    )
    return shown


def _row(values: Sequence[float], form: str) -> tuple[str, str]:
    each = "  ".join(form.format(value) for value in values)
    return each, form.format(statistics.median(values))


def _percent(shares: Sequence[float]) -> tuple[str, str]:
    return _row([100 * share for share in shares], "{:+.1f}")


def _moves(workdir: Path) -> list[dict[str, float]]:
    """Of each finished move of ``MOVER`` what its metrics say."""
    return [
        {name: value for name, value in record.items() if name.startswith("migrat")}
        for record in _records(workdir / "metrics" / f"{MOVER}.jsonl")
        if "migration_s" in record
    ]


def _records(path: Path) -> list[dict[str, Any]]:
    return list(read_records(path)) if path.exists() else []


def _wait(condition: Callable[[], object], swarm: Child) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        if swarm.exit_code is not None:
            raise ProcessDied(swarm.obituary())
        if time.monotonic() > deadline_s:
            raise ProcessDied(f"the swarm made no progress: see {swarm.log}")
        time.sleep(POLL_S)
