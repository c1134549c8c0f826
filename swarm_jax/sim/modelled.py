"""A device without JAX whose arithmetic is exact, for thousands of virtual runs.

Gradients are small integers: a hash of parameters, input and incoming gradient. With a
number of loss tokens per step that is a power of two, every sum, mean and update is
exact in float64, in any order and grouping. So two runs that counted the same have the
same bits, and one that lost, doubled or misplaced a microbatch does not.
"""

import asyncio
import hashlib
import heapq
import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import Abandoned
from swarm_jax.roles.compute import Arrays, Backward, Count, Forward, Reduced
from swarm_jax.sim.data import Microbatch

WIDTH = 3
GRADIENT_BITS = 20
CONTROL, BACKWARD, FORWARD = range(3)
DURATIONS_S = {"forward": 0.01, "backward": 0.02, "apply": 0.05}


@dataclass(kw_only=True, slots=True)
class ModelledModel:
    """What a config must know of a model."""

    num_layers: int = 4
    vocab_size: int = 512
    sequence_length: int = 2
    tied_head: bool = False


def modelled_config(
    *,
    num_stages: int,
    steps: int,
    microbatches: int = 8,
    tied_head: bool = False,
    delayed_updates: bool = False,
) -> ExperimentConfig:
    """An experiment for ``ModelledCompute``; ``microbatches`` is a power of two."""
    assert microbatches & (microbatches - 1) == 0
    model = ModelledModel(tied_head=tied_head)
    config = ExperimentConfig(run_id="modelled", steps=steps, model=model)
    config.data.target_batch_size = microbatches
    config.swarm.microbatch_size = 1
    config.swarm.num_stages = num_stages
    config.swarm.wire = "float32"
    config.swarm.delayed_updates = delayed_updates
    config.optimizer.warmup_steps = 0
    config.validation.sequences = 1
    config.tuning.directory_refresh_s = 0.2
    config.tuning.directory_expiry_s = 4.0
    config.tuning.relay_timeout_s = 20.0
    config.tuning.allreduce_timeout_s = 6.0
    config.tuning.rebalancing.strategy = "off"
    return config.check()


class ModelledTokens:
    """Tokens by name; every target carries loss."""

    digest = "modelled tokens"

    def __init__(self, config: ExperimentConfig):
        self._config = config

    def microbatch(self, step: int, index: int) -> Microbatch:
        shape = (1, self._config.model.sequence_length)
        generator = np.random.default_rng([step, index])
        tokens = generator.integers(0, self._config.model.vocab_size, (2, *shape))
        inputs, targets = tokens.astype(np.int32)
        return Microbatch(inputs, targets, targets.size)

    def step_loss_tokens(self, step: int) -> int:
        tokens = self._config.microbatches_per_step * self._config.model.sequence_length
        assert tokens & (tokens - 1) == 0
        return tokens

    def validation_microbatch(self, name: str, index: int) -> Microbatch:
        assert name in self._config.validation.metrics
        return self.microbatch(2**31, index)


class ModelledCompute:
    """``roles.compute.Compute`` of one stage.

    Its parameters are one vector; on the first and the last stage of a model with a
    tied head a second one, which they share.

    Args:
        duration_s: Virtual seconds that an operation, by its name, takes.

    Attributes:
        on_operation: Called with device_started or device_done and the operation's
            name. When it is done, its gradient is in the sum and in the ledger.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        stage: int,
        duration_s: Callable[[str], float] = lambda name: DURATIONS_S.get(name, 0.002),
    ):
        self.on_operation: Callable[[str, str], None] = lambda kind, name: None
        tokens = ("int32", (1, config.model.sequence_length))
        activations = ("float64", (WIDTH,))
        is_last = stage == config.swarm.num_stages - 1
        self.input_specs = (tokens if stage == 0 else activations,)
        self.gradient_specs = () if is_last else (activations,)
        is_tied = stage in config.tied_stages
        self.tied_leaf = 1 if is_tied else None
        self._num_leaves = 2 if is_tied else 1
        self.sum_specs = (activations,) * self._num_leaves
        self._staleness = int(config.swarm.delayed_updates)
        self.state_specs = (activations,) * (2 + self._staleness) * self._num_leaves
        self._counts_norm_of = 1 if is_last else self._num_leaves
        self._stage = stage
        self._device = _Device(duration_s, lambda *what: self.on_operation(*what))
        self._reset()

    @property
    def queued(self) -> int:
        return self._device.queued

    async def ready(self) -> None:
        pass

    async def forward(
        self, x: Arrays, *, keep: bool, order: int, previous: int = 0
    ) -> Forward:
        params = self._choose(previous)

        def work() -> Forward:
            y = integers(b"y", params, *x)
            residuals = (params, list(x)) if keep else None
            return Forward([y], residuals, True, self._device.takes_s)

        return await self._device.run("forward", FORWARD, order, work)

    async def backward(
        self, residuals: Any, grad_y: Arrays, *, count: Count | None, order: int
    ) -> Backward:
        params, x = residuals

        def work() -> Backward:
            grad_x = [] if self._stage == 0 else [integers(b"x", params, *x, *grad_y)]
            gradients = self._gradients(params, *x, *grad_y)
            return self._add(gradients, grad_x, 0.0, count)

        return await self._counting("backward", work, count, order)

    async def loss_backward(
        self,
        x: Arrays,
        targets: np.ndarray,
        *,
        count: Count | None,
        order: int,
        previous: int = 0,
    ) -> Backward:
        params = self._choose(previous)

        def work() -> Backward:
            grad_x = [] if self._stage == 0 else [integers(b"x", params, *x, targets)]
            gradients = self._gradients(params, *x, targets)
            return self._add(gradients, grad_x, float(gradients[0, 0]), count)

        return await self._counting("backward", work, count, order)

    async def loss(self, x: Arrays, targets: np.ndarray, *, order: int) -> float:
        return await self._device.run(
            "forward",
            FORWARD,
            order,
            lambda: float(integers(b"l", self._params, *x, targets)[0]),
        )

    async def gradient_sum(
        self, scale: float, tied_scale: float | None = None
    ) -> list[np.ndarray]:
        scales = scale, scale if tied_scale is None else tied_scale
        return await self._control(
            "gradient_sum",
            lambda: [leaf * by for leaf, by in zip(self._sum, scales, strict=False)],
        )

    async def add_to_sum(self, gradients: Arrays) -> bool:
        def work() -> bool:
            finite = bool(np.isfinite(gradients).all())
            if finite:
                self._sum = self._sum + np.array(gradients)
            return finite

        return await self._control("add_to_sum", work)

    async def load_reduced(self, gradients: Arrays) -> Reduced:
        def work() -> Reduced:
            self._reduced = np.array(gradients)
            digest = hashlib.sha256(self._reduced).hexdigest()
            return Reduced(self._squared_norm(), digest)

        return await self._control("load_reduced", work)

    async def reduce_alone(self, scale: float) -> float:
        def work() -> float:
            self._reduced = self._sum * scale
            return self._squared_norm()

        return await self._control("reduce_alone", work)

    def _squared_norm(self) -> float:
        return float((self._reduced[: self._counts_norm_of] ** 2).sum())

    async def apply(self, gradient_norm: float) -> None:
        def work() -> None:
            assert self._reduced is not None, "apply without a reduced gradient"
            self._previous = [self._choose(0), *self._previous][: 1 + self._staleness]
            self._previous_tied = self._reduced[self.tied_leaf or 0]
            self._params = self._params + self._reduced
            norm = np.array([gradient_norm])
            moved = zip(self._moments, self._reduced, strict=True)
            self._moments = np.array([integers(b"m", m, g, norm) for m, g in moved])
            self._begin_step()

        await self._control("apply", work)

    async def skip(self) -> None:
        def work() -> None:
            self._previous = [self._choose(0)][: self._staleness]
            self._previous_tied = None
            self._begin_step()

        await self._control("skip", work)

    def forget_previous(self) -> None:
        self._previous = self._previous[: self._staleness]
        self._previous_tied = None

    async def previous_tied(self) -> np.ndarray:
        def work() -> np.ndarray:
            if self._previous_tied is None:
                raise Abandoned("the tied gradient of the last update is gone")
            return self._previous_tied

        return await self._control("previous_tied", work)

    async def clear(self) -> None:
        await self._control("clear", self._clear)

    async def state(self) -> list[np.ndarray]:
        return await self._control(
            "state",
            lambda: [
                *self._params.copy(),
                *self._moments.copy(),
                *itertools.chain(*self._previous[: self._staleness]),
            ],
        )

    async def load_state(self, state: Arrays) -> None:
        def work() -> None:
            parts = np.split(np.array(state), 2 + self._staleness)
            self._params, self._moments, *self._previous = parts
            self._previous_tied = None
            self._clear()

        await self._control("load_state", work)

    async def reset(self) -> None:
        await self._control("reset", self._reset)

    async def digest(self) -> str:
        state = await self.state()
        return b"".join(a.tobytes() for a in state[: self._num_leaves]).hex()

    def take_record(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass

    def _reset(self) -> None:
        own, tied = np.full(WIDTH, float(self._stage)), np.zeros(WIDTH)
        self._params = np.array([own, tied][: self._num_leaves])
        self._moments = np.zeros_like(self._params)
        self._early = np.zeros_like(self._params)
        self._previous: list[np.ndarray] = [self._choose(0)] * self._staleness
        self._previous_tied: np.ndarray | None = None
        self._clear()

    def _clear(self) -> None:
        self._sum = np.zeros_like(self._params)
        self._early = np.zeros_like(self._params)
        self._reduced: np.ndarray | None = None

    def _begin_step(self) -> None:
        early = self._early
        self._clear()
        self._sum = self._sum + early

    def _gradients(self, *arrays: np.ndarray) -> np.ndarray:
        salts = (b"g", b"t")[: self._num_leaves]
        return np.array([integers(salt, *arrays) for salt in salts])

    def _choose(self, previous: int) -> np.ndarray:
        if not previous:
            # The moments take part, so that a wrong norm shows in every gradient.
            return self._params + self._moments / 2**GRADIENT_BITS
        if not 0 < previous <= len(self._previous):
            raise Abandoned(f"the parameters before {previous} updates are gone")
        return self._previous[previous - 1]

    def _add(
        self,
        gradients: np.ndarray,
        grad_x: list[np.ndarray],
        loss_sum: float,
        count: Count | None,
    ) -> Backward:
        if count is not None and count.is_early:
            self._early = self._early + gradients
        elif count is not None:
            self._sum = self._sum + gradients
        return Backward(grad_x, loss_sum, True, self._device.takes_s)

    async def _counting(
        self, name: str, work: Callable[[], Backward], count: Count | None, order: int
    ) -> Backward:
        if count is None:
            return await self._device.run(name, BACKWARD, order, work)

        def settle(result: Backward | None) -> None:
            count.settle(result is not None, result.loss_sum if result else 0.0)

        return await self._device.run(name, BACKWARD, order, work, count.start, settle)

    async def _control(self, name: str, work: Callable[[], Any]) -> Any:
        return await self._device.run(name, CONTROL, 0, work)


class _Device:
    """One operation at a time; what has started finishes, whoever has given up.

    Attributes:
        takes_s: How long the operation that has started takes.
    """

    def __init__(
        self,
        duration_s: Callable[[str], float],
        on_operation: Callable[[str, str], None],
    ):
        self._duration_s = duration_s
        self._on_operation = on_operation
        self._waiting: list[tuple] = []
        self._ages = itertools.count()
        self._busy = False
        self.takes_s = 0.0

    @property
    def queued(self) -> int:
        return len(self._waiting)

    async def run(
        self,
        name: str,
        kind: int,
        order: int,
        work: Callable[[], Any],
        start: Callable[[], bool] = lambda: True,
        settle: Callable[[Any], None] = lambda result: None,
    ) -> Any:
        waiter = asyncio.get_running_loop().create_future()
        # Its task may be gone when the answer comes: asyncio would call it unseen.
        waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
        entry = (kind, order, next(self._ages), name, work, start, settle, waiter)
        heapq.heappush(self._waiting, entry)
        self._next()
        return await waiter

    def _next(self) -> None:
        while self._waiting and not self._busy:
            *_, name, work, start, settle, waiter = heapq.heappop(self._waiting)
            if waiter.cancelled():
                continue
            if not start():
                waiter.set_exception(Abandoned(name))
                continue
            self._busy = True
            self._on_operation("device_started", name)
            self.takes_s = self._duration_s(name)
            result, error = None, None
            try:
                result = work()
            except Abandoned as abandoned:
                error = abandoned
            asyncio.get_running_loop().call_later(
                self.takes_s, self._done, name, settle, waiter, result, error
            )

    def _done(
        self,
        name: str,
        settle: Callable[[Any], None],
        waiter: asyncio.Future,
        result: Any,
        error: Exception | None,
    ) -> None:
        self._busy = False
        if not waiter.done():
            waiter.set_exception(error) if error else waiter.set_result(result)
        settle(result)
        self._on_operation("device_done", name)
        self._next()


def integers(salt: bytes, *arrays: np.ndarray) -> np.ndarray:
    """WIDTH integers below 2^20 that depend on every bit of the arrays."""
    seed = salt
    for array in arrays:
        seed += np.ascontiguousarray(array).tobytes()
    values = [zlib.crc32(seed + bytes([i])) % 2**GRADIENT_BITS for i in range(WIDTH)]
    return np.array(values, np.float64)
