"""Random tokens as a function of their names: data for simulations and tests."""

from dataclasses import dataclass

import numpy as np

from swarm_jax.config import ExperimentConfig

VALIDATION_STEP = 2**31


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Attributes:
    inputs, targets: int32 [B, L]; targets are negative where no loss is taken.
    loss_tokens: How many targets are not.
    """

    inputs: np.ndarray
    targets: np.ndarray
    loss_tokens: int


class RandomTokens:
    """Uniform tokens; every fifth target is masked out, at random.

    The masks make the number of loss tokens differ between microbatches, so that
    dividing by the wrong count shows.
    """

    digest = "random tokens"

    def __init__(self, config: ExperimentConfig):
        self._config = config

    def microbatch(self, step: int, index: int) -> Microbatch:
        config = self._config
        generator = np.random.default_rng([config.seed, step, index])
        shape = (config.swarm.microbatch_size, config.model.sequence_length)
        inputs = generator.integers(0, config.model.vocab_size, shape, np.int32)
        targets = generator.integers(0, config.model.vocab_size, shape, np.int32)
        targets[generator.random(shape) < 0.2] = -1
        return Microbatch(inputs, targets, int((targets >= 0).sum()))

    def step_loss_tokens(self, step: int) -> int:
        return sum(
            self.microbatch(step, index).loss_tokens
            for index in range(self._config.microbatches_per_step)
        )

    def validation_microbatch(self, name: str, index: int) -> Microbatch:
        number = list(self._config.validation.metrics).index(name)
        return self.microbatch(VALIDATION_STEP + number, index)
