"""The control: plain training of the whole model in one process.

It shares the model and the learning-rate schedule with the stages and nothing else: no
residuals that leave a program, no queue, no partial norms. What a swarm trains must be
equal to what this trains.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Shape suffixes: N sequences of a step, M microbatches of a step, B microbatch,
# L sequence.


class Microbatch(Protocol):
    """inputs_BL, targets_BL (negative where no loss is taken), how many are not."""

    inputs: np.ndarray
    targets: np.ndarray
    loss_tokens: int


def make_train_step(
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    clip_norm: float | None,
    microbatch_size: int,
    delayed_updates: bool = False,
):
    """Builds plain training of a whole model.

    Args:
        loss: ``loss(params, inputs_BL, targets_BL) -> loss_sum``, a sum over the
            targets that are not negative.
        clip_norm: Longer gradients are scaled down to this; None for no clipping.
        microbatch_size: B; the step's gradient is summed over microbatches, so that
            memory does not grow with N.
        delayed_updates: A step's gradient is at the parameters before the last update
            (the first step's at the first ones). ``opt_state`` holds them, too.

    Returns:
        ``(init_optimizer, step)``, where ``init_optimizer(params) -> opt_state`` and
        ``step(params, opt_state, inputs_NL, targets_NL) -> (params, opt_state,
        mean_loss, gradient_norm)``. Both states are donated. The loss is where the
        gradient is.
    """
    clip = (
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    )
    chain = optax.chain(clip, optimizer)

    def gradient(params, inputs_NL, targets_NL):
        split = (-1, microbatch_size, inputs_NL.shape[1])

        def add(total, microbatch):
            return jax.tree.map(
                jnp.add, total, jax.value_and_grad(loss)(params, *microbatch)
            ), None

        shapes = jax.eval_shape(jax.value_and_grad(loss), params, inputs_NL, targets_NL)
        zeros = jax.tree.map(jnp.zeros_like, shapes)
        (loss_sum, gradient_sum), _ = jax.lax.scan(
            add, zeros, (inputs_NL.reshape(split), targets_NL.reshape(split))
        )
        loss_tokens = jnp.sum(targets_NL >= 0)
        gradients = jax.tree.map(
            lambda total: total / loss_tokens.astype(total.dtype), gradient_sum
        )
        return gradients, loss_sum / loss_tokens

    def update(params, opt_state, gradients):
        updates, opt_state = chain.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def step(params, opt_state, inputs_NL, targets_NL):
        gradients, loss = gradient(params, inputs_NL, targets_NL)
        params, opt_state = update(params, opt_state, gradients)
        return params, opt_state, loss, optax.tree.norm(gradients)

    def delayed_step(params, state, inputs_NL, targets_NL):
        opt_state, before = state
        gradients, loss = gradient(before, inputs_NL, targets_NL)
        updated, opt_state = update(params, opt_state, gradients)
        return updated, (opt_state, params), loss, optax.tree.norm(gradients)

    def init_delayed(params):
        return chain.init(params), jax.tree.map(jnp.copy, params)

    if delayed_updates:
        return jax.jit(init_delayed), jax.jit(delayed_step, donate_argnums=(0, 1))
    return jax.jit(chain.init), jax.jit(step, donate_argnums=(0, 1))


@dataclass(frozen=True, slots=True)
class Step:
    """Attributes:
    number: Counted from 1.
    params: After the update; None unless they were asked for. The next step takes
        their buffers.
    train_loss: Mean over the step's loss tokens, before the update.
    gradient_norm: Before clipping.
    step_s: Wall time since the end of the step before.
    """

    number: int
    params: Any
    train_loss: float
    gradient_norm: float
    step_s: float


def train(
    step: Callable[..., Any],
    params: Any,
    opt_state: Any,
    microbatches: Callable[[int], Sequence[Microbatch]],
    steps: int,
    *,
    wants_params: Callable[[int], bool],
) -> Iterator[Step]:
    """Trains, and yields after every step.

    The figures of a step are read when the next one has been given to the device, so
    that it never waits for the host; after a step whose parameters are wanted it does.

    Args:
        step: From ``make_train_step``.
        microbatches: Of a step, counted from 0. It is called while the device is busy
            with the step before.
        wants_params: Whether those of a step, counted from 1, are to be yielded. They
            always are after the last.
    """
    batch = _join(microbatches(0))
    reader, unread = _Reader(), None
    for number in range(1, steps + 1):
        params, opt_state, *figures = step(params, opt_state, *batch)
        if number < steps:
            batch = _join(microbatches(number))
        if unread is not None:
            yield reader.read(*unread)
        unread = number, *figures
        if number == steps or wants_params(number):
            yield reader.read(*unread, params)
            reader.restart()
            unread = None


class _Reader:
    """Waits for the figures of steps, and takes the time between their ends."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Leaves out what was done since the last step was read."""
        self._ended_s = time.perf_counter()

    def read(
        self, number: int, loss: jax.Array, gradient_norm: jax.Array, params: Any = None
    ) -> Step:
        train_loss, gradient_norm = float(loss), float(gradient_norm)
        began_s, self._ended_s = self._ended_s, time.perf_counter()
        step_s = self._ended_s - began_s
        return Step(number, params, train_loss, gradient_norm, step_s)


def make_validation(
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array],
    microbatches: Sequence[Microbatch],
) -> Callable[[Any], float]:
    """Builds ``validate(params)``: the mean loss over all loss tokens."""
    jitted_loss = jax.jit(loss)
    loss_tokens = sum(microbatch.loss_tokens for microbatch in microbatches)

    def validate(params: Any) -> float:
        losses = [jitted_loss(params, m.inputs, m.targets) for m in microbatches]
        return sum(map(float, losses)) / loss_tokens

    return validate


def _join(microbatches: Sequence[Microbatch]) -> tuple[np.ndarray, np.ndarray]:
    inputs_NL = np.concatenate([microbatch.inputs for microbatch in microbatches])
    targets_NL = np.concatenate([microbatch.targets for microbatch in microbatches])
    return inputs_NL, targets_NL
