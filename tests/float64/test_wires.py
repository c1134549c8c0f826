"""A swarm with lossy wires trains what one process that simulates them trains.

In float64, so that both have the same codes: rounding would now and then tip one over.
"""

import jax
import numpy as np
import pytest

from tests.float64.plain import check_equal, make_config, train, train_plainly

WIRES = [("int8", "dynamic8"), ("dynamic8", "int8")]


def config_of(wire, gradient_wire):
    config = make_config((2, 1, 2))
    config.swarm.wire, config.swarm.gradient_wire = wire, gradient_wire
    return config


@pytest.mark.parametrize("wires", WIRES)
def test_a_swarm_trains_as_the_control_that_simulates_its_wires(wires, plain):
    config = config_of(*wires)
    simulated = train_plainly(config, simulate_wire=True)
    check_equal(*train(config, [1, 2, 1]), simulated)
    losses, plain_losses = np.array(simulated[0]), np.array(plain[0])
    assert losses[0] != plain_losses[0]  # activations alone make this difference
    np.testing.assert_allclose(losses, plain_losses, rtol=0.01)


def test_gradients_have_a_codec_of_their_own(plain):
    """The first loss is taken before any gradient has been used."""
    losses, _ = train_plainly(config_of("float64", "int8"), simulate_wire=True)
    same = np.isclose(losses, plain[0], rtol=1e-12, atol=0.0)
    assert same[0] and not same[-1]


def test_a_wire_that_loses_nothing_changes_nothing(plain):
    losses, layers = train_plainly(config_of("float64", None), simulate_wire=True)
    np.testing.assert_allclose(losses, plain[0], rtol=1e-12)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max()
        ),
        layers,
        plain[1],
    )
