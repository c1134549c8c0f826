"""The whole model of a checkpoint, for one process: to evaluate, to sample, to export.

What it is comes from the checkpoint, where the swarm has written the experiment.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from models import functional
from models.config import GPTConfig
from swarm_jax.config import DataConfig, ExperimentConfig
from swarm_jax.errors import CheckpointError, ConfigError
from swarm_jax.launcher.workdir import CHECKPOINTS
from swarm_jax.stage.checkpoints import CheckpointFolder


@dataclass(frozen=True, slots=True)
class SavedModel:
    """Attributes:
    step: Of the checkpoint.
    model: What was trained.
    data: What it was trained on.
    layers: Trees of numpy arrays, as ``functional.from_layers`` takes them.
    """

    step: int
    model: GPTConfig
    data: DataConfig
    layers: Mapping[str, Any]

    def params(self, model: GPTConfig) -> functional.Params:
        """On the device, matrices in the compute dtype of ``model``."""
        params = functional.from_layers(self.layers)
        return jax.jit(lambda tree: functional.cast_params(model, tree))(params)


def load(folder: Path, step: int | None) -> SavedModel:
    """Reads a checkpoint, whatever stages it was saved by.

    Args:
        folder: With checkpoints, or a run folder.
        step: None: the newest.

    Raises:
        CheckpointError: There is none, or it is damaged.
        ConfigError: It was saved by a version with other fields.
    """
    inside = folder / CHECKPOINTS
    checkpoints = CheckpointFolder(
        inside if inside.is_dir() else folder, model_fingerprint=None
    )
    if step is None:
        steps = checkpoints.steps()
        if not steps:
            raise CheckpointError(
                f"there is no complete checkpoint in {checkpoints.root}: give the "
                "--workdir of a run, or its --checkpoint_dir"
            )
        step = steps[-1]
    layers, experiment = checkpoints.load_params(step)
    try:
        model = GPTConfig(**experiment["model"])
        data = DataConfig(**experiment["data"])
    except TypeError as error:
        raise ConfigError(
            f"step {step} in {checkpoints.root} is of another version of swarm_jax, "
            f"with other fields: {error}"
        ) from error
    if "float64" in (model.parameter_dtype, model.compute_dtype):
        jax.config.update("jax_enable_x64", True)
    return SavedModel(step, model, data, layers)


def check_agrees(saved: SavedModel, config: ExperimentConfig) -> None:
    """Whether the experiment's data are of use to the saved model.

    Raises:
        ConfigError: It is another model, or reads another vocabulary; the message lists
            the differences.
    """
    differences = [
        *_differences("model", saved.model, config.model, but=("compute_dtype",)),
        *_differences("data", saved.data, config.data, but=_no_matter(config.data)),
    ]
    if differences:
        raise ConfigError(
            f"the checkpoint of step {saved.step} is of another model or vocabulary "
            f"than this experiment: {'; '.join(differences)}"
        )


def _no_matter(data: DataConfig) -> tuple[str, ...]:
    """Fields that do not change what an id means: a trained BPE is of its corpus."""
    free = ["target_batch_size", "packing"]
    if data.tokenizer != "bpe":
        free += ["bpe_vocab_size", "corpus", "text_field", "held_out_fraction"]
        free += ["max_corpus_bytes", "on_broken_line"]
    return tuple(free)


def _differences(part: str, saved: Any, ours: Any, but: tuple[str, ...]) -> list[str]:
    return [
        f"{part}.{field.name} is {getattr(saved, field.name)!r} there and "
        f"{getattr(ours, field.name)!r} here"
        for field in dataclasses.fields(saved)
        if field.name not in but
        and getattr(saved, field.name) != getattr(ours, field.name)
    ]
