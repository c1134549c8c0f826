"""What fits a device: its memory, and what a stage takes of it.

On a peer with several devices all figures are of one: of the fullest.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from swarm_jax.stage.ahead import Ahead
from swarm_jax.stage.home import Home
from swarm_jax.stage.programs import StagePrograms

USABLE_SHARE = 0.9
"""Of a device's memory: the rest is for gaps, and for arrays on their way."""

HOST_SHARE = 0.25
"""Of main memory, for a stage that computes on the CPU: other peers may be there."""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def plan_residuals(
    programs: StagePrograms,
    init: Callable[[], Any],
    *,
    home: Home | None = None,
    residual_bytes: int | None,
    most: int,
    delayed_updates: bool = False,
    check: Callable[[], None] = lambda: None,
) -> int | None:
    """Compiles a stage's programs and says how many microbatches' residuals fit.

    Args:
        init: ``() -> params``.
        home: Where parameters and optimizer state will be.
        residual_bytes: Memory for residuals; None: what the device has left beside the
            stage's other arrays and its most demanding program.
        most: Microbatches that the stage is given at once: what comes for them is on
            the device before its turn. If the residuals of all fit, what recomputes is
            not compiled, which takes as long as the rest; but on devices that must not
            meet a program for the first time while they serve.
        delayed_updates: As in ``StageCompute``.
        check: As in ``Ahead``.

    Returns:
        As ``ResidualBudget.microbatches``.
    """
    on_host = jax.default_backend() == "cpu"
    ahead = Ahead(programs, init, home, run_passes=not on_host, check=check)
    ahead.compile()
    fit = fitting(ahead, residual_bytes, most, delayed_updates)
    if fit is not None and (fit < most or not on_host):
        ahead.compile_recomputing()
        fit = fitting(ahead, residual_bytes, most, delayed_updates)
    return fit


def fitting(
    ahead: Ahead, residual_bytes: int | None, most: int, delayed_updates: bool = False
) -> int | None:
    """Of how many microbatches the residuals fit; None for a stage that keeps none.

    Args:
        ahead: Has compiled what the stage will run.
        residual_bytes, most, delayed_updates: As in ``plan_residuals``.
    """
    if ahead.residuals is None:
        return None
    left = residual_bytes
    if left is None:
        standing = standing_bytes(ahead, delayed_updates)
        waiting = most * tree_bytes((ahead.x, ahead.grad_y))
        left = device_bytes() - standing - waiting - ahead.workspace_bytes
    return max(0, left) // tree_bytes(ahead.residuals)


def standing_bytes(ahead: Ahead, delayed_updates: bool = False) -> int:
    """What a stage holds on its device whatever it does, at its worst moment.

    The weights of this step and of the one before, and the gradient sum; and unless
    they are in main memory, the reduced gradient, and parameters and optimizer state
    twice, since a copy of them may be on its way to a checkpoint or a stage peer.

    With delayed updates one more gradient sum, that of the next step, and two more of
    weights: those of two steps before serve replays, and others may be on their way
    with a copy of the state.
    """
    weights, total = tree_bytes(ahead.weights), tree_bytes(ahead.total)
    more = 2 * weights + total if delayed_updates else 0
    if ahead.home.host is not None:
        return 2 * weights + total + more
    state = tree_bytes((ahead.params, ahead.opt_state))
    return 2 * state + weights * (1 + ahead.is_cast) + 2 * total + more


def device_bytes() -> int:
    """Memory that this process may use on its device, or on the smallest of them.

    Several devices that a CPU plays have one main memory between them.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    if None not in stats:
        return int(USABLE_SHARE * min(found["bytes_limit"] for found in stats))
    return int(HOST_SHARE * _main_memory_bytes() / len(stats))


def tree_bytes(tree: Any) -> int:
    """Of all leaves, arrays or their shapes, on each device that has a part of them."""
    return sum(map(_leaf_bytes, jax.tree.leaves(tree)))


def _leaf_bytes(leaf: Any) -> int:
    sharding = leaf.sharding
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _main_memory_bytes() -> int:
    """The machine's, or the container's if it may use less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    return total if limit == "max" else min(total, int(limit))
