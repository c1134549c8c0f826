"""Microbatches put together: for whoever takes a step in one piece."""

from collections.abc import Iterable

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.data.dataset import Microbatch, TokenDataset


def step_batch(
    config: ExperimentConfig, data: TokenDataset, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """All sequences of a step, counted from 0: inputs_NL, targets_NL."""
    return joined(data.microbatch(step, i) for i in range(config.microbatches_per_step))


def joined(microbatches: Iterable[Microbatch]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of all their sequences."""
    pairs = [(microbatch.inputs, microbatch.targets) for microbatch in microbatches]
    inputs, targets = map(np.concatenate, zip(*pairs, strict=True))
    return inputs, targets
