import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.schedule import learning_rate
from swarm_jax.config import SCHEDULES, OptimizerConfig
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


def test_schedules_that_fall_in_a_line_or_not_at_all():
    line = make_schedule(dataclasses.replace(SETTINGS, schedule="linear"), steps=12)
    assert [float(line(count)) for count in (2, 4, 8, 12, 20)] == [1, 2, 1.25, 0.5, 0.5]
    peak = make_schedule(dataclasses.replace(SETTINGS, schedule="constant"), steps=12)
    assert [float(peak(count)) for count in (0, 2, 4, 12, 20)] == [0, 1, 2, 2, 2]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup_steps", [0, 4, 12])
def test_who_has_no_jax_finds_the_same_learning_rate(schedule, warmup_steps):
    settings = dataclasses.replace(
        SETTINGS, schedule=schedule, warmup_steps=warmup_steps
    )
    expected = make_schedule(settings, steps=12)
    for count in range(13):
        found = learning_rate(settings, count, 12)
        assert found == pytest.approx(float(expected(count)), rel=1e-6, abs=1e-9)


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


def test_adam_is_adamw_without_decay():
    settings = dataclasses.replace(SETTINGS, warmup_steps=0, weight_decay=0.0)
    updates = []
    for name in ("adam", "adamw"):
        chosen = dataclasses.replace(settings, name=name)
        optimizer = make_optimizer(chosen, 10, {"kernel": True, "scale": False})
        state = optimizer.init(GRADIENTS)
        updates.append(optimizer.update(GRADIENTS, state, GRADIENTS)[0])
    for name in GRADIENTS:
        assert jnp.array_equal(updates[0][name], updates[1][name])


def layered_trees(seed):
    """Three blocks and a head, of very different norms; one bias is zero."""
    generator = np.random.default_rng(seed)
    scales = np.array([1e-2, 1.0, 1e2], np.float32)
    return {
        "blocks": {
            "kernel": generator.normal(size=(3, 4, 5)) * scales[:, None, None],
            "bias": generator.normal(size=(3, 5)) * [[0.0], [1.0], [0.1]],
        },
        "head": {"scale": generator.normal(size=4) + 1},
    }


LAMB = dataclasses.replace(
    SETTINGS, name="lamb", schedule="constant", warmup_steps=0, learning_rate=0.1
)


def lamb_steps(select):
    """Parameters after 4 updates of what ``select`` takes of the trees."""
    trees = [jax.tree.map(np.float32, select(layered_trees(n))) for n in range(5)]
    params, *steps = trees
    decayed = jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)
    optimizer = make_optimizer(LAMB, 10, decayed)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradients in steps:
        updates, state = update(gradients, state, params)
        params = jax.tree.map(np.add, params, updates)
    return params


def test_lamb_formula():
    """You et al. 2020, algorithm 2, with a ratio for each tensor of each layer."""
    found = lamb_steps(lambda trees: trees)
    for select in (
        *(lambda t, i=i: t["blocks"]["kernel"][i] for i in range(3)),
        *(lambda t, i=i: t["blocks"]["bias"][i] for i in range(3)),
        lambda t: t["head"]["scale"],
    ):
        x = select(layered_trees(0))
        m, v = np.zeros_like(x), np.zeros_like(x)
        decay = 0.5 if x.ndim == 2 else 0.0
        for step in range(1, 5):
            g = select(layered_trees(step))
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
            ratio = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-2)
            u = ratio + decay * x
            norms = np.linalg.norm(x), np.linalg.norm(u)
            x = x - 0.1 * (norms[0] / norms[1] if all(norms) else 1.0) * u
        np.testing.assert_allclose(select(found), x, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("cut", [(1, 2), (2, 1), (1, 1, 1)])
def test_lamb_does_not_depend_on_the_partition(cut):
    whole, first = lamb_steps(lambda trees: trees), 0
    for count in cut:
        rows = slice(first, first + count)

        def mine(trees, rows=rows):
            return {"blocks": jax.tree.map(lambda leaf: leaf[rows], trees["blocks"])}

        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
            lamb_steps(mine),
            mine(whole),
        )
        first += count


def test_squared_norm_is_the_square_of_optax_norm():
    expected = float(optax.tree.norm(GRADIENTS)) ** 2
    assert float(squared_norm(GRADIENTS)) == pytest.approx(expected, rel=1e-6)
