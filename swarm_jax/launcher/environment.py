"""Threads, devices and caches of each process on a machine that many share."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from swarm_jax.errors import ConfigError
from swarm_jax.launcher.flags import PLATFORMS, jax_platforms

CARD_SHARE = 0.9
"""Share of a card's memory that its peers divide; the rest is for CUDA itself."""


def process_environment(cache_dir: Path) -> dict[str, str]:
    """Environment of any process of a run: one thread of everything, shared caches.

    XLA takes its number of threads from PJRT_NPROC. (The widespread
    ``XLA_FLAGS=--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1`` no
    longer limits it: measured with jax 0.10.2.)
    """
    return {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": "1",
        **_compilation_cache(cache_dir),
    }


def keep_programs(cache_dir: Path) -> None:
    """Has jax, which is not imported yet, keep compiled programs between runs.

    For who is started by hand; processes of a run are told where when they are started.
    """
    os.environ.update(_compilation_cache(cache_dir))


def _compilation_cache(cache_dir: Path) -> dict[str, str]:
    """Where compiled programs are kept: as the user has set it, or in ours."""
    variable = "JAX_COMPILATION_CACHE_DIR"
    return {
        variable: os.environ.get(variable, str(cache_dir / "jax")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def peer_environments(
    device: str, peers: int, cache_dir: Path, devices_per_peer: int = 1
) -> list[dict[str, str]]:
    """Environment of each of ``peers`` stage servers on this machine.

    On CPU the cores are divided, and several devices are virtual. On GPU, peers take
    the cards in turn, ``devices_per_peer`` each; those who share cards divide their
    memory: JAX would take three quarters of it for the first one.

    Raises:
        ConfigError: ``device`` is a GPU and there are not as many as a peer needs.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // peers)
    base = process_environment(cache_dir) | {
        "JAX_PLATFORMS": jax_platforms(device),
        "PJRT_NPROC": str(threads),
    }
    if PLATFORMS[device] == "cpu" and devices_per_peer > 1:
        base["JAX_NUM_CPU_DEVICES"] = str(devices_per_peer)
    if PLATFORMS[device] != "cuda":
        return [base for _ in range(peers)]
    hands = _hands(gpu_cards(os.environ), devices_per_peer)
    environments = []
    for peer in range(peers):
        hand = peer % len(hands)
        sharers = len(range(hand, peers, len(hands)))
        environment = base | {"CUDA_VISIBLE_DEVICES": hands[hand]}
        if sharers > 1:
            share = f"{CARD_SHARE / sharers:.3f}"
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = share
        environments.append(environment)
    return environments


def gpu_cards(environment: Mapping[str, str]) -> list[str]:
    """The NVIDIA cards to use, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        ConfigError: There is none.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        visible = ",".join(str(card) for card in range(_count_cards()))
    cards = [card.strip() for card in visible.split(",") if card.strip()]
    if not cards:
        raise ConfigError("No NVIDIA GPU found on this machine: use --device cpu")
    return cards


def _hands(cards: list[str], size: int) -> list[str]:
    """The cards, ``size`` at a time; what is left over is nobody's."""
    if len(cards) < size:
        raise ConfigError(
            f"A peer is to have {size} NVIDIA GPUs, and this machine has {len(cards)} "
            "of them to use: give --mesh a smaller mesh"
        )
    starts = range(0, len(cards) - size + 1, size)
    return [",".join(cards[start : start + size]) for start in starts]


def _count_cards() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
    )
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
