"""The control: plain training of the whole model in one process.

It shares the model and the learning-rate schedule with the stages and nothing else: no
residuals that leave a program, no queue, no partial norms. What a swarm trains must be
equal to what this trains.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Shape suffixes: N sequences of a step, M microbatches of a step, B microbatch,
# L sequence.


def make_train_step(
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    clip_norm: float | None,
    microbatch_size: int,
):
    """Builds plain training of a whole model.

    Args:
        loss: ``loss(params, inputs_BL, targets_BL) -> loss_sum``, a sum over the
            targets that are not negative.
        clip_norm: Longer gradients are scaled down to this; None for no clipping.
        microbatch_size: B; the step's gradient is summed over microbatches, so that
            memory does not grow with N.

    Returns:
        ``(init_optimizer, step)``, where ``init_optimizer(params) -> opt_state`` and
        ``step(params, opt_state, inputs_NL, targets_NL) -> (params, opt_state,
        mean_loss, gradient_norm)``. Both states are donated.
    """
    clip = (
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    )
    chain = optax.chain(clip, optimizer)

    def step(params, opt_state, inputs_NL, targets_NL):
        split = (-1, microbatch_size, inputs_NL.shape[1])

        def add(total, microbatch):
            return jax.tree.map(
                jnp.add, total, jax.value_and_grad(loss)(params, *microbatch)
            ), None

        shapes = jax.eval_shape(jax.value_and_grad(loss), params, inputs_NL, targets_NL)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (loss_sum, gradient_sum), _ = jax.lax.scan(
            add, zeros, (inputs_NL.reshape(split), targets_NL.reshape(split))
        )
        loss_tokens = jnp.sum(targets_NL >= 0)
        gradients = jax.tree.map(
            lambda total: total / loss_tokens.astype(total.dtype), gradient_sum
        )
        gradient_norm = optax.tree.norm(gradients)
        updates, opt_state = chain.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, loss_sum / loss_tokens, gradient_norm

    return jax.jit(chain.init), jax.jit(step, donate_argnums=(0, 1))
