"""AdamW from plain values, and clipping by a norm that spans all stages."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax


class OptimizerSettings(Protocol):
    """Attributes:
    learning_rate: Peak, reached after ``warmup_steps``.
    final_learning_rate: At the experiment's last step.
    """

    learning_rate: float
    warmup_steps: int
    final_learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float


def make_schedule(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine that ends at ``steps``.

    Returns:
        ``schedule(count)``: the learning rate of the update that follows ``count``
        updates; so it is 0 for the first one when there is a warm-up.
    """
    peak, warmup_steps = settings.learning_rate, settings.warmup_steps
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else peak,
        peak_value=peak,
        warmup_steps=warmup_steps,
        # optax refuses a cosine of no length, which a warm-up to the end would leave.
        decay_steps=max(steps, warmup_steps + 1),
        end_value=settings.final_learning_rate,
    )


def make_optimizer(
    settings: OptimizerSettings, steps: int, decayed: Any
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) with decoupled decay of matrices.

    Args:
        decayed: Tree of bool with the structure of the parameters: True for matrices.
            The number of axes does not tell, since layers are stacked.
    """
    return optax.adamw(
        make_schedule(settings, steps),
        b1=settings.beta1,
        b2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
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
