import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from swarm_jax.config import OptimizerConfig
from swarm_jax.stage.optimizer import (
    clip_by_given_norm,
    make_optimizer,
    make_schedule,
    squared_norm,
)

GRADIENTS = {
    "kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]]),
    "scale": jnp.array([0.25, -4.0]),
}


SETTINGS = OptimizerConfig(
    learning_rate=2.0,
    warmup_steps=4,
    final_learning_rate=0.5,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-2,
    weight_decay=0.5,
)


def test_schedule_rises_in_a_line_and_falls_in_a_cosine():
    schedule = make_schedule(SETTINGS, steps=12)
    assert [float(schedule(count)) for count in range(5)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert float(schedule(8)) == pytest.approx((2.0 + 0.5) / 2)
    assert float(schedule(12)) == float(schedule(20)) == 0.5


def test_schedule_without_warmup_or_without_cosine():
    at_once = make_schedule(dataclasses.replace(SETTINGS, warmup_steps=0), steps=10)
    assert float(at_once(0)) == 2.0 and float(at_once(10)) == 0.5
    only_warmup = make_schedule(SETTINGS, steps=4)
    assert float(only_warmup(3)) == 1.5


@pytest.mark.parametrize("clip_norm", [0.1, 5.3, 100.0, None])
def test_clipping_by_a_given_norm_is_optax_clipping(clip_norm):
    norm = optax.tree.norm(GRADIENTS)
    clipped = clip_by_given_norm(GRADIENTS, norm, clip_norm)
    expected = GRADIENTS
    if clip_norm is not None:
        expected, _ = optax.clip_by_global_norm(clip_norm).update(GRADIENTS, ())
    for name in GRADIENTS:
        assert jnp.array_equal(clipped[name], expected[name])


def test_given_norm_counts_and_not_the_trees_own():
    clipped = clip_by_given_norm(GRADIENTS, jnp.float32(100.0), 1.0)
    np.testing.assert_allclose(clipped["scale"], GRADIENTS["scale"] / 100, rtol=1e-6)


def test_adamw_formula_and_decay_of_matrices_only():
    """Loshchilov & Hutter 2019, algorithm 2, first update."""
    params = {"kernel": jnp.full((2, 2), 2.0), "scale": jnp.full((2,), 3.0)}
    settings = dataclasses.replace(SETTINGS, warmup_steps=0, learning_rate=0.1)
    optimizer = make_optimizer(settings, 10, {"kernel": True, "scale": False})
    updates, _ = optimizer.update(GRADIENTS, optimizer.init(params), params)
    adam = {name: g / (jnp.abs(g) + 1e-2) for name, g in GRADIENTS.items()}
    np.testing.assert_allclose(
        updates["kernel"], -0.1 * (adam["kernel"] + 0.5 * 2.0), rtol=1e-4
    )
    np.testing.assert_allclose(updates["scale"], -0.1 * adam["scale"], rtol=1e-5)


def test_squared_norm_is_the_square_of_optax_norm():
    expected = float(optax.tree.norm(GRADIENTS)) ** 2
    assert float(squared_norm(GRADIENTS)) == pytest.approx(expected, rel=1e-6)
