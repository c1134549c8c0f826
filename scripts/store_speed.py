"""How fast a stage's state is saved to a folder and restored from it."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from swarm_jax.stage.checkpoints import CheckpointFolder
from swarm_jax.stage.layered import Layers
from swarm_jax.stage.manifests import Saved

MB = 1_000_000
LAYER_BYTES = 48 * MB
"""Of a Transformer block of width 576: its parameters and two moments in float32."""

TREES = ("params", "opt_state/0/mu", "opt_state/0/nu")
SHARES = {"attention": 4, "up": 4, "down": 4}
"""Of a block's arrays, in parts of the width squared."""


def store_speed(root: Path, state_mb: int, repeats: int) -> dict[str, Any]:
    """Saves and restores random arrays in the shapes of Transformer blocks.

    The first time is not counted: libraries are imported in it.

    Args:
        root: A new folder.
        state_mb: About how large the state is, in 10^6 bytes.

    Returns:
        Its size and the speeds in 10^6 bytes per second, hashing included. What was
        just written is read from the system's memory, not from a disk.
    """
    layers, state_bytes = _state(state_mb * MB)
    folder = CheckpointFolder(root, model_fingerprint="benchmark", keep_last=1)
    save_s, restore_s = [], []
    for step in range(1, repeats + 2):
        began_s = time.perf_counter()
        saved = Saved(step, 0, "benchmark", None)
        digest = folder.save(0, 1, saved, layers, {})
        saved_s = time.perf_counter()
        folder.complete(step, 0, {0: digest}, config={}, summary={})
        completed_s = time.perf_counter()
        folder.load(step, list(layers))
        restore_s.append(time.perf_counter() - completed_s)
        save_s.append(saved_s - began_s)
    return {
        "state_mb": round(state_bytes / MB),
        "save_mb_per_s": [state_bytes / MB / s for s in save_s[1:]],
        "restore_mb_per_s": [state_bytes / MB / s for s in restore_s[1:]],
    }


def _state(num_bytes: int) -> tuple[Layers, int]:
    """Layers of at most ``LAYER_BYTES``, and their bytes in all."""
    num_layers = max(1, round(num_bytes / LAYER_BYTES))
    part = num_bytes // (num_layers * len(TREES) * sum(SHARES.values()) * 4)
    width = int(part**0.5)
    random = np.random.default_rng(0)
    layers = {
        f"layers.{index}": {
            f"{tree}/{name}/kernel": random.random(
                (width, share * width), dtype=np.float32
            )
            for tree in TREES
            for name, share in SHARES.items()
        }
        for index in range(num_layers)
    }
    arrays = [array for layer in layers.values() for array in layer.values()]
    return layers, sum(array.nbytes for array in arrays)
