"""A device that takes its time and hands on arrays of real size, without computing.

For swarms whose network is real and whose accelerators are not: on a real event loop
it sleeps as long as ``ModelledCompute`` does on a virtual one.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.net.protocols import ArraySpec, spec_of
from swarm_jax.roles.compute import Arrays, Backward, Count, Forward, Reduced
from swarm_jax.sim.modelled import FORWARD, WIDTH, ModelledCompute


def incompressible(specs: Sequence[ArraySpec]) -> list[np.ndarray]:
    """Seeded random bytes as arrays of these dtypes and shapes."""
    generator = np.random.default_rng(0)
    return [
        np.frombuffer(
            generator.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype
        ).reshape(shape)
        for dtype, shape in specs
    ]


class SleptCompute(ModelledCompute):
    """``roles.compute.Compute`` of one stage; its gradient sum is always zero.

    Args:
        duration_s: Seconds that "forward" and "backward" take; on the last stage
            "backward" is all of it.
        boundary: What crosses each boundary between stages, there and back.
        gradient: What peers of the stage reduce at the end of a step; None for next to
            nothing.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        stage: int,
        duration_s: Callable[[str], float],
        boundary: Arrays,
        gradient: np.ndarray | None = None,
    ):
        super().__init__(config, stage, duration_s)
        specs = tuple(spec_of(array) for array in boundary)
        is_last = stage == config.swarm.num_stages - 1
        self._boundary = list(boundary)
        self._grad_x = [] if stage == 0 else self._boundary
        if stage > 0:
            self.input_specs = specs
        self.gradient_specs = () if is_last else specs
        self._gradient = gradient
        if gradient is not None:
            self.sum_specs = (spec_of(gradient),)

    async def forward(
        self, x: Arrays, *, keep: bool, order: int, previous: int = 0
    ) -> Forward:
        return await self._device.run(
            "forward",
            FORWARD,
            order,
            lambda: Forward(self._boundary, None, True, self._device.takes_s),
        )

    async def backward(
        self, residuals: Any, grad_y: Arrays, *, count: Count | None, order: int
    ) -> Backward:
        return await self._counting("backward", self._nothing, count, order)

    async def loss_backward(
        self,
        x: Arrays,
        targets: np.ndarray,
        *,
        count: Count | None,
        order: int,
        previous: int = 0,
    ) -> Backward:
        return await self._counting("backward", self._nothing, count, order)

    async def gradient_sum(
        self, scale: float, tied_scale: float | None = None
    ) -> list[np.ndarray]:
        found = await super().gradient_sum(scale, tied_scale)
        return found if self._gradient is None else [self._gradient]

    async def load_reduced(self, gradients: Arrays) -> Reduced:
        digest = await asyncio.to_thread(hashlib.sha256, gradients[0])
        reduced = await super().load_reduced(self._sum)
        return replace(reduced, digest=digest.hexdigest())

    def _nothing(self) -> Backward:
        return self._add(np.zeros(WIDTH), self._grad_x, 0.0, None)
