"""Parameters that a run starts with when no seed makes them: a checkpoint of step 0.

It holds parameters only, since the optimizer begins anew. Their digest is a field of
the experiment, so that peers that start with others never meet, and a peer that has
none at hand does not start with those of the seed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from models import functional
from scripts.stages import stage_layers
from swarm_jax.config import ExperimentConfig, to_dict
from swarm_jax.errors import CheckpointError
from swarm_jax.stage.checkpoints import CheckpointFolder
from swarm_jax.stage.layer_files import ArrayRecord
from swarm_jax.stage.layered import nested
from swarm_jax.stage.manifests import Saved

Arrays = Mapping[str, np.ndarray]
ReadLayer = Callable[[str], Arrays]

_PARAMS = "params/"


def shapes_of(config: ExperimentConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Of the whole model, by layer and array ("attention/qkv/kernel")."""
    whole = functional.make_stage(config.model, 0, config.model.num_layers)
    layers = jax.eval_shape(lambda: functional.to_layers(whole.init(0), 0))
    return {
        layer: {name: leaf.shape for name, leaf in _flat(tree).items()}
        for layer, tree in layers.items()
    }


def digest_of(layers: Collection[str], read: ReadLayer) -> str:
    """Names these parameters; ``read`` is called for one layer after the other."""
    digest = hashlib.sha256()
    for layer in sorted(layers):
        for name, array in sorted(read(layer).items()):
            record = ArrayRecord.of(array)
            parts = layer, name, record.dtype, record.shape, record.sha256
            digest.update(json.dumps(parts).encode())
    # A digest alone may look like a number where overrides are read.
    return f"sha256_{digest.hexdigest()[:16]}"


def save(
    config: ExperimentConfig,
    layers: Collection[str],
    read: ReadLayer,
    root: str | os.PathLike,
    origin: str,
) -> None:
    """Writes the checkpoint of step 0, one stage in memory at a time.

    Args:
        config: With ``initial_weights`` set to the digest.
        origin: For people: where they come from.

    Raises:
        CheckpointError: The folder holds a run already, or cannot be written to.
    """
    folder = CheckpointFolder(root, model_fingerprint=config.model_fingerprint())
    if steps := folder.steps():
        raise CheckpointError(
            f"{folder.root} holds checkpoints already (newest: step {steps[-1]}). Name "
            "another folder"
        )
    saved = Saved(step=0, generation=0, lineage="", last_commit=None)
    owned = _by_stage(config, layers)
    digests = {
        stage: folder.save(
            stage,
            len(owned),
            saved,
            {layer: _prefixed(read(layer)) for layer in names},
            shared={},
        )
        for stage, names in enumerate(owned)
    }
    summary = {"imported_from": origin}
    folder.complete(0, 0, digests, config=to_dict(config), summary=summary)


def reader(
    config: ExperimentConfig, layers: Iterable[str], root: str | os.PathLike
) -> Callable[[], functional.Params]:
    """Makes ``init() -> params`` of these layers; they are read at each call, to numpy.

    Raises:
        CheckpointError: They are not there. By ``init``, also if they are damaged.
    """
    folder = CheckpointFolder(root, model_fingerprint=config.model_fingerprint())
    names = list(layers)
    if 0 not in folder.steps(names):
        raise CheckpointError(
            f"this experiment starts with imported parameters "
            f"(initial_weights={config.initial_weights!r}), and {folder.root} does not "
            "hold them: import them there (python -m scripts.import_weights), or name "
            "the folder that holds them with --checkpoint_dir"
        )

    def init() -> functional.Params:
        _, found, _ = folder.load(0, names)
        trees = {layer: nested(arrays)["params"] for layer, arrays in found.items()}
        return functional.from_layers(trees)

    return init


def _by_stage(config: ExperimentConfig, layers: Collection[str]) -> list[list[str]]:
    """Names of each stage's layers: the ends of the model are with the blocks there."""
    owned = [
        [f"layers.{first + index}" for index in range(count)]
        for first, count in stage_layers(config)
    ]
    owned[0].insert(0, "embed")
    owned[-1].append("head")
    assert {name for names in owned for name in names} == set(layers)
    return owned


def _flat(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _prefixed(arrays: Arrays) -> dict[str, np.ndarray]:
    return {_PARAMS + name: array for name, array in arrays.items()}
