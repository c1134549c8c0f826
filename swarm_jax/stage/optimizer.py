"""Optimizers from plain values, and clipping by a norm that spans all stages."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from swarm_jax.stage.layered import BLOCKS


class OptimizerSettings(Protocol):
    """Attributes:
    name: "adamw", "adam" or "lamb".
    schedule: "cosine", "linear" or "constant".
    learning_rate: Peak, reached after ``warmup_steps``.
    final_learning_rate: At the experiment's last step, unless it is constant.
    """

    name: str
    schedule: str
    learning_rate: float
    warmup_steps: int
    final_learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float


def make_schedule(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then what ``settings.schedule`` says, until ``steps``.

    Returns:
        ``schedule(count)``: the learning rate of the update that follows ``count``
        updates; so it is 0 for the first one when there is a warm-up.
    """
    peak, warmup_steps = settings.learning_rate, settings.warmup_steps
    if settings.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0 if warmup_steps else peak,
            peak_value=peak,
            warmup_steps=warmup_steps,
            # optax refuses a cosine of no length, which a warm-up to the end leaves.
            decay_steps=max(steps, warmup_steps + 1),
            end_value=settings.final_learning_rate,
        )
    final = peak if settings.schedule == "constant" else settings.final_learning_rate
    after = optax.linear_schedule(peak, final, max(steps - warmup_steps, 1))
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules((warmup, after), (warmup_steps,))


def make_optimizer(
    settings: OptimizerSettings, steps: int, decayed: Any
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019), Adam, or LAMB (You et al. 2020, algorithm 2).

    Decay is decoupled, and of matrices only. LAMB is Optax's but for whose norms are
    compared (``scale_by_trust_ratio_per_layer``). In the prototype of SWARM, moments in
    LAMB's update are not corrected for their bias (the correction multiplies the
    learning rate, which is then 0.15 of what was asked for at the 10th step), a norm of
    parameters counts as 10^4 at most, and norm scales decay.

    Args:
        decayed: Tree of bool with the structure of the parameters: True for matrices.
            The number of axes does not tell, since layers are stacked.
    """
    schedule = make_schedule(settings, steps)
    moments = {"b1": settings.beta1, "b2": settings.beta2, "eps": settings.epsilon}
    if settings.name == "adam":
        return optax.adam(schedule, **moments)
    decay = {"weight_decay": settings.weight_decay, "mask": decayed}
    if settings.name == "adamw":
        return optax.adamw(schedule, **moments, **decay)
    assert settings.name == "lamb", settings.name
    return optax.chain(
        optax.scale_by_adam(**moments),
        optax.add_decayed_weights(**decay),
        scale_by_trust_ratio_per_layer(),
        optax.scale_by_learning_rate(schedule),
    )


def scale_by_trust_ratio_per_layer() -> optax.GradientTransformation:
    """``optax.scale_by_trust_ratio`` with a ratio for each tensor of each layer.

    A tensor under "blocks" is many layers'. One ratio for it would depend on which
    layers a stage has.
    """
    per_tensor = optax.scale_by_trust_ratio()

    def update(updates, state, params):
        def scale(updates, params):
            return per_tensor.update(updates, state, params)[0]

        scaled = {
            part: (jax.vmap(scale) if part == BLOCKS else scale)(tree, params[part])
            for part, tree in updates.items()
        }
        return scaled, state

    return optax.GradientTransformation(per_tensor.init, update)


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
