"""All stages of an experiment chained in one process, without a network."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from scripts import wiring
from swarm_jax.config import ExperimentConfig

Tree = Any


def tokens_per_s(config: ExperimentConfig, seconds: float) -> float:
    """Speed of the chain, after a first round that compiles."""
    chain = Chain(config)
    chain.run(microbatches=config.tuning.microbatches_in_flight + 1)
    started_s = time.perf_counter()
    count = chain.run(until_s=started_s + seconds)
    elapsed_s = time.perf_counter() - started_s
    tokens = config.swarm.microbatch_size * config.model.sequence_length
    return count * tokens / elapsed_s


@dataclass(slots=True)
class _Stage:
    device: Any
    programs: Any
    weights: Tree
    gradient_sum: Tree


class Chain:
    """All stages; microbatches go there and back through them.

    Attributes:
        stages: First to last.
    """

    def __init__(self, config: ExperimentConfig):
        self._in_flight = config.tuning.microbatches_in_flight
        self.stages = []
        devices = jax.devices()
        for stage in range(config.swarm.num_stages):
            device = devices[stage % len(devices)]
            programs = wiring.make_programs(config, stage)
            with jax.default_device(device):
                params = wiring.make_functions(config, stage).init(config.seed)
                weights = programs.cast(params)
                del params
                state = jax.device_put((weights, programs.zeros()), device)
            self.stages.append(_Stage(device, programs, *state))
        shape_BL = config.swarm.microbatch_size, config.model.sequence_length
        tokens_BL = np.random.default_rng(0).integers(0, 256, shape_BL, np.int32)
        self._x = jax.device_put((tokens_BL,), self.stages[0].device)
        self._targets_BL = jax.device_put(tokens_BL, self.stages[-1].device)

    def run(self, *, microbatches: int = 0, until_s: float = 0.0) -> int:
        """Returns how many went through: ``microbatches`` at least, and to the time."""
        launched = deque()
        count = 0
        while count < microbatches or time.perf_counter() < until_s:
            launched.append(self._forward())
            count += 1
            if len(launched) == self._in_flight:
                jax.block_until_ready(self._backward(*launched.popleft()))
        while launched:
            jax.block_until_ready(self._backward(*launched.popleft()))
        jax.block_until_ready([stage.gradient_sum for stage in self.stages])
        return count

    def _forward(self) -> tuple[list[Tree], Tree]:
        """To the last stage and through it; what the others keep, and the gradient."""
        *stages, last = self.stages
        x, kept = self._x, []
        for stage in stages:
            x = jax.device_put(x, stage.device)
            x, residuals, _ = stage.programs.forward_keeping(stage.weights, x)
            kept.append(residuals)
        x = jax.device_put(x, last.device)
        gradient, *_, last.gradient_sum = last.programs.loss_backward_adding(
            last.weights, x, self._targets_BL, last.gradient_sum
        )
        return kept, gradient

    def _backward(self, kept: list[Tree], gradient: Tree) -> Any:
        finite = True
        for stage, residuals in zip(self.stages[-2::-1], kept[::-1], strict=True):
            gradient = jax.device_put(gradient, stage.device)
            gradient, finite, stage.gradient_sum = stage.programs.backward_adding(
                stage.weights, residuals, gradient, stage.gradient_sum
            )
        return finite
