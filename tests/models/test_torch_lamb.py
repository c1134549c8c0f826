"""LAMB in PyTorch against optax's, and against its formula by hand."""

import jax
import numpy as np
import optax
import pytest
import torch

from models.torch_lamb import Lamb

HYPER = {"b1": 0.9, "b2": 0.99, "eps": 1e-6}
RATES = (0.0, 0.1, 0.2, 0.1, 0.05)


def make_arrays(seed, zeros=False):
    """A matrix, a long vector and one of zeros."""
    generator = np.random.default_rng(seed)
    arrays = {
        "matrix": generator.normal(0, 0.1, (3, 5)),
        "vector": generator.normal(3, 1, 4),
        "bias": generator.normal(0, 1, 5) * (not zeros),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def make_lamb(params, rate=0.1):
    decays = ((["matrix"], 0.1), (["vector", "bias"], 0.0))
    groups = [
        {"params": [params[name] for name in names], "weight_decay": decay}
        for names, decay in decays
    ]
    betas = HYPER["b1"], HYPER["b2"]
    return Lamb(groups, lr=rate, betas=betas, eps=HYPER["eps"])


def parameters(arrays):
    return {k: torch.nn.Parameter(torch.from_numpy(v)) for k, v in arrays.items()}


def set_gradients(params, gradients):
    for name, parameter in params.items():
        parameter.grad = torch.from_numpy(gradients[name])


def test_steps_are_those_of_optax():
    initial = make_arrays(0, zeros=True)
    params, expected = parameters(initial), jax.tree.map(np.copy, initial)
    ours = make_lamb(params)
    optimizer = optax.lamb(
        lambda count: np.array(RATES)[count],
        **HYPER,
        weight_decay=0.1,
        mask={"matrix": True, "vector": False, "bias": False},
    )
    state = optimizer.init(expected)
    for step, rate in enumerate(RATES):
        gradients = make_arrays(step + 1)
        set_gradients(params, gradients)
        for group in ours.param_groups:
            group["lr"] = rate
        ours.step()
        updates, state = optimizer.update(gradients, state, expected)
        expected = optax.apply_updates(expected, updates)
        for name, parameter in params.items():
            np.testing.assert_allclose(
                parameter.detach(), expected[name], rtol=2e-5, atol=1e-7
            )


def test_a_first_step_is_as_long_as_the_rate_says():
    """Its direction is the gradient's signs: u = g / (|g| + epsilon), without decay."""
    initial, gradients = make_arrays(0), make_arrays(1)
    params = parameters(jax.tree.map(np.copy, initial))
    set_gradients(params, gradients)
    make_lamb(params, rate=0.25).step()
    moved = params["vector"].detach().numpy() - initial["vector"]
    length = np.linalg.norm(initial["vector"])
    assert np.linalg.norm(moved) == pytest.approx(0.25 * length, rel=1e-5)
    expected = -0.25 * length * np.sign(gradients["vector"]) / np.sqrt(4)
    np.testing.assert_allclose(moved, expected, rtol=1e-4)


@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_nothing_is_scaled_where_a_length_is_zero(what):
    params = parameters({"bias": np.full(4, 2.0, np.float32)})
    if what == "parameter":
        torch.nn.init.zeros_(params["bias"])
    set_gradients(params, {"bias": np.full(4, what == "parameter", np.float32)})
    before = params["bias"].detach().clone()
    lamb = Lamb(params.values(), lr=0.1, betas=(0.9, 0.99), eps=1e-6)
    lamb.step()
    moved = 0.1 if what == "parameter" else 0.0
    np.testing.assert_allclose(params["bias"].detach(), before - moved, rtol=1e-5)
