"""AdamW from plain values, and clipping by a norm that spans all stages."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def make_schedule(
    *, learning_rate: float, warmup_steps: int, final_learning_rate: float, steps: int
) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine that ends at ``steps``.

    Returns:
        ``schedule(count)``: the learning rate of the update that follows ``count``
        updates; so it is 0 for the first one when there is a warm-up.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else learning_rate,
        peak_value=learning_rate,
        warmup_steps=warmup_steps,
        # optax refuses a cosine of no length, which a warm-up to the end would leave.
        decay_steps=max(steps, warmup_steps + 1),
        end_value=final_learning_rate,
    )


def make_optimizer(
    schedule: optax.Schedule,
    decayed: Any,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) with decoupled decay of matrices.

    Args:
        decayed: Tree of bool with the structure of the parameters: True for matrices.
            The number of axes does not tell, since layers are stacked.
    """
    return optax.adamw(
        schedule,
        b1=beta1,
        b2=beta2,
        eps=epsilon,
        weight_decay=weight_decay,
        mask=decayed,
    )


def clip_by_given_norm(
    gradients: Any, gradient_norm: jax.Array, clip_norm: float | None
) -> Any:
    """``optax.clip_by_global_norm`` with the norm given.

    A stage cannot know the norm over all stages, so it is handed in. The formula is
    optax's, operation by operation, so that stages equal the whole model.

    Args:
        clip_norm: Longer gradients are scaled down to this; None for no clipping.
    """
    if clip_norm is None:
        return gradients
    untouched = gradient_norm < clip_norm

    def clip(gradient: jax.Array) -> jax.Array:
        scaled = (gradient / gradient_norm.astype(gradient.dtype)) * clip_norm
        return jnp.where(untouched, gradient, scaled)

    return jax.tree.map(clip, gradients)


def squared_norm(tree: Any) -> jax.Array:
    """Sum of squares over all leaves, in their dtype."""
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
