"""One experiment by three systems: the swarm, one process with JAX, and PyTorch."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from swarm_jax.errors import ConfigError
from swarm_jax.launcher.benchmark import measure


def train_all(
    folder: Path, shared: Sequence[str], peers_per_stage: int, console: Console
) -> list[Path]:
    """Trains the experiment with each of them, one after the other.

    Args:
        folder: Gets a run folder for each.
        shared: Arguments of all: the experiment, the device, the cache.
        peers_per_stage: Of the swarm.

    Returns:
        The run folders.

    Raises:
        ConfigError: There is such a run already.
        ProcessDied: One failed. The message quotes its log.
    """
    peers = ["--peers-per-stage", str(peers_per_stage)]
    commands = {
        "swarm": ["scripts.launch", *shared, *peers],
        "single": ["scripts.train_single", *shared],
        "pytorch": ["scripts.train_pytorch", *shared],
    }
    folders = [folder / system for system in commands]
    existing = [str(path) for path in folders if path.exists()]
    if existing:
        raise ConfigError(
            f"{existing[0]} is there already: choose another folder, or compare what "
            f"is there: python -m scripts.compare {' '.join(existing)}"
        )
    for path, command in zip(folders, commands.values(), strict=True):
        console.print(f"{path.name}: training; log: {path}.log")
        speed = measure(path.name, command, path)
        console.print(f"{path.name}: {speed:,.0f} tokens/s")
    return folders
