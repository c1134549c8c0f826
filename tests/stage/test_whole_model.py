import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from swarm_jax.data.dataset import Microbatch
from swarm_jax.stage.whole_model import make_train_step, train


def loss(params, inputs_BL, targets_BL):
    """A quadratic with a gradient that can be written down."""
    predicted_BL = params["slope"] * inputs_BL + params["offset"]
    return jnp.sum(jnp.square(predicted_BL - targets_BL), where=targets_BL >= 0)


@pytest.fixture
def batch():
    generator = np.random.default_rng(0)
    inputs_NL = generator.normal(size=(6, 4)).astype(np.float32)
    targets_NL = generator.integers(-1, 5, size=(6, 4)).astype(np.int32)
    return inputs_NL, targets_NL


@pytest.mark.parametrize("microbatch_size", [1, 2, 6])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_step_follows_the_mean_gradient_over_loss_tokens(
    microbatch_size, clip_norm, batch
):
    inputs_NL, targets_NL = batch
    params = {"slope": jnp.float32(0.5), "offset": jnp.float32(-1.0)}
    init_optimizer, step = make_train_step(
        loss, optax.sgd(0.1), clip_norm=clip_norm, microbatch_size=microbatch_size
    )
    counted = targets_NL >= 0
    errors = (0.5 * inputs_NL - 1.0 - targets_NL)[counted]
    slope, offset = np.mean(2 * errors * inputs_NL[counted]), np.mean(2 * errors)
    norm = np.hypot(slope, offset)
    rate = 0.1 * (min(1.0, clip_norm / norm) if clip_norm else 1.0)

    updated, _, mean_loss, gradient_norm = step(
        params, init_optimizer(params), inputs_NL, targets_NL
    )
    assert float(mean_loss) == pytest.approx(np.mean(errors**2), rel=1e-5)
    assert float(gradient_norm) == pytest.approx(norm, rel=1e-5)
    assert float(updated["slope"]) == pytest.approx(0.5 - rate * slope, rel=1e-5)
    assert float(updated["offset"]) == pytest.approx(-1.0 - rate * offset, rel=1e-5)
    assert jax.tree.structure(updated) == jax.tree.structure({"slope": 0, "offset": 0})


def test_delayed_updates_take_gradients_at_the_parameters_before_the_last_one(batch):
    """And update those of now: W(t+1) = W(t) - rate * gradient(W(t-1))."""
    inputs_NL, targets_NL = batch
    counted = targets_NL >= 0

    def gradient(slope, offset):
        errors = (slope * inputs_NL + offset - targets_NL)[counted]
        wanted = np.mean(2 * errors * inputs_NL[counted]), np.mean(2 * errors)
        return np.array(wanted), np.mean(errors**2)

    init_optimizer, step = make_train_step(
        loss, optax.sgd(0.1), clip_norm=None, microbatch_size=2, delayed_updates=True
    )
    params = {"slope": jnp.float32(0.5), "offset": jnp.float32(-1.0)}
    state = init_optimizer(params)
    now = before = np.array([0.5, -1.0])
    for _ in range(4):
        wanted, mean_loss = gradient(*before)
        now, before = now - 0.1 * wanted, now
        params, state, given_loss, norm = step(params, state, inputs_NL, targets_NL)
        given = [float(params["slope"]), float(params["offset"])]
        assert given == pytest.approx(now.tolist(), rel=1e-4)
        assert float(given_loss) == pytest.approx(mean_loss, rel=1e-4)
        assert float(norm) == pytest.approx(np.hypot(*wanted), rel=1e-4)


class Device:
    """A stand-in for a step on a device: says what the host did, in order."""

    def __init__(self):
        self.events = []

    def step(self, params, opt_state, inputs_NL, targets_NL):
        self.events.append(f"start {params + 1}")
        return params + 1, opt_state, self.figure(params + 1), self.figure(0)

    def figure(self, number):
        device = self

        class Figure:
            def __float__(self):
                if number:
                    device.events.append(f"read {number}")
                return float(number)

        return Figure()


def test_a_step_is_given_to_the_device_before_the_one_before_it_is_read():
    device = Device()
    tokens_BL = np.zeros((1, 2), np.int32)
    microbatch = Microbatch(tokens_BL, tokens_BL, loss_tokens=2)
    steps = []
    for step in train(
        device.step, 0, None, lambda _: [microbatch], 5, wants_params=lambda n: n == 3
    ):
        device.events.append(f"yielded {step.number}")
        steps.append(step)
    assert device.events == [
        *("start 1", "start 2", "read 1", "yielded 1"),
        *("start 3", "read 2", "yielded 2"),
        *("read 3", "yielded 3"),
        *("start 4", "start 5", "read 4", "yielded 4"),
        *("read 5", "yielded 5"),
    ]
    assert [step.params for step in steps] == [None, None, 3, None, 5]
    assert [step.train_loss for step in steps] == [1, 2, 3, 4, 5]
    assert all(step.step_s > 0 for step in steps)
