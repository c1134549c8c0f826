"""Parameters in a file, under names that do not depend on the partition."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


def flat_layers(layers: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All arrays by name, such as "layers.3/attention/qkv/kernel".

    Args:
        layers: Tree of nested dicts for each layer.
    """
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(leaf)
        for keys, leaf in jax.tree.leaves_with_path(dict(layers))
    }


def save_layers(path: Path, layers: Mapping[str, Any]) -> None:
    """Writes an ``.npz`` file of ``flat_layers``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **flat_layers(layers))
    partial.replace(path)
