"""PyTorch, written from the formulas, against JAX: loss, gradients, training."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
import torch

from models.functional import make_stage, matrix_mask, to_layers
from models.schedule import learning_rate
from models.torch_gpt import TorchGPT, gradient_layers, load_layers
from models.torch_parity import measure_parity, relative_differences
from models.torch_training import TorchTrainer

SETTINGS = SimpleNamespace(
    schedule="cosine",
    learning_rate=1e-2,
    warmup_steps=3,
    final_learning_rate=1e-3,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.1,
    clip_norm=1.0,
)
STEPS = 8


@pytest.fixture(scope="module")
def layers(params):
    return to_layers(params, 0)


def make_trainer(config, **changes):
    settings = SimpleNamespace(**{**vars(SETTINGS), **changes})
    return TorchTrainer(config, settings, STEPS, "cpu")


def schedule(steps=STEPS):
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=SETTINGS.learning_rate,
        warmup_steps=SETTINGS.warmup_steps,
        decay_steps=steps,
        end_value=SETTINGS.final_learning_rate,
    )


def make_control(functions):
    """Plain JAX training with optax, from its own parts."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(SETTINGS.clip_norm),
        optax.adamw(
            schedule(),
            b1=SETTINGS.beta1,
            b2=SETTINGS.beta2,
            eps=SETTINGS.epsilon,
            weight_decay=SETTINGS.weight_decay,
            mask=matrix_mask,
        ),
    )

    @jax.jit
    def step(params, opt_state, inputs_NL, targets_NL):
        count = (targets_NL >= 0).sum()

        def mean_loss(params):
            return functions.loss(params, inputs_NL, targets_NL) / count

        loss, gradients = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        norm = optax.tree.norm(gradients)
        return optax.apply_updates(params, updates), opt_state, loss, norm

    return optimizer.init, step


def make_batches(config, count=STEPS):
    shape = (4, config.sequence_length)
    generator = np.random.default_rng(0)
    for _ in range(count):
        inputs, targets = generator.integers(0, config.vocab_size, (2, *shape))
        targets[generator.random(shape) < 0.2] = -1
        yield inputs.astype(np.int32), targets.astype(np.int32)


def parameter_layers(model):
    """Parameters by layer, by the way of gradients."""
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    return gradient_layers(model)


@pytest.mark.parametrize("feed_forward", ["gelu", "geglu"])
def test_loss_and_gradients(config, params, tokens_BL, targets_BL, feed_forward):
    config = dataclasses.replace(config, feed_forward=feed_forward)
    if feed_forward == "gelu":
        ungated = params["blocks"]["feed_forward"].copy()
        del ungated["gate"]
        params = params | {"blocks": params["blocks"] | {"feed_forward": ungated}}
    functions = make_stage(config, 0, 5)
    model = TorchGPT(config)
    load_layers(model, to_layers(params, 0))
    loss = model.loss(torch.from_numpy(tokens_BL), torch.from_numpy(targets_BL))
    loss.backward()
    expected_loss, expected = jax.jit(jax.value_and_grad(functions.loss))(
        params, tokens_BL, targets_BL
    )
    assert loss.item() == pytest.approx(float(expected_loss), rel=1e-6)
    differences = relative_differences(to_layers(expected, 0), gradient_layers(model))
    assert len(differences) == len(list(model.parameters()))
    assert max(differences.values()) < 1e-5


def test_layers_load_into_pytorch_and_come_back(config, layers):
    model = TorchGPT(config)
    load_layers(model, layers)
    jax.tree.map(np.testing.assert_array_equal, parameter_layers(model), layers)


def test_training_stays_together(config, whole, params):
    trainer = make_trainer(config)
    parity = measure_parity(
        whole,
        *make_control(whole),
        params,
        trainer,
        make_batches(config),
        microbatch_size=2,
    )
    assert parity.max_loss_diff < 1e-4
    assert parity.max_grad_diff < 1e-5
    assert len(parity.jax_losses) == len(parity.pytorch_losses) == STEPS
    assert np.ptp(parity.jax_losses) > 0.01
    assert "max_grad_diff" in parity.describe()


def test_parity_sees_a_wrong_gradient(layers):
    wrong = jax.tree.map(np.array, layers)
    kernel = wrong["layers.3"]["feed_forward"]["input"]["kernel"]
    kernel[2, 3] += 0.5 * np.abs(kernel).max()
    differences = relative_differences(layers, wrong)
    worst = differences.pop("layers.3.feed_forward.input.kernel")
    assert worst == pytest.approx(0.5)
    assert not any(differences.values())


def test_schedule_is_that_of_optax():
    expected = schedule()
    for count in range(STEPS + 3):
        rate = learning_rate(SETTINGS, count, STEPS)
        assert rate == pytest.approx(float(expected(count)), rel=1e-6, abs=1e-9)


def test_no_warm_up_starts_at_the_peak():
    settings = SimpleNamespace(**{**vars(SETTINGS), "warmup_steps": 0})
    assert learning_rate(settings, 0, STEPS) == pytest.approx(1e-2)


def test_only_matrices_decay(config, layers):
    """Without a gradient AdamW does nothing but decay."""
    trainer = make_trainer(config, warmup_steps=0)
    trainer.load(layers)
    for parameter in trainer.model.parameters():
        torch.nn.init.constant_(parameter, 2.0)
    inputs, targets = next(make_batches(config))
    for parameter in trainer.model.parameters():
        parameter.register_hook(torch.zeros_like)
    trainer.step((inputs, targets))
    decayed = 2.0 * (1 - SETTINGS.learning_rate * SETTINGS.weight_decay)
    for parameter in trainer.model.parameters():
        expected = 2.0 if parameter.dim() == 1 else decayed
        np.testing.assert_allclose(parameter.detach(), expected, rtol=1e-6)


def test_clipping_scales_to_the_norm_and_reports_the_old_one(config, layers):
    batch = next(make_batches(config))
    norms = []
    for clip_norm in (None, 0.01):
        trainer = make_trainer(config, clip_norm=clip_norm)
        trainer.load(layers)
        norms.append(trainer.step(batch).gradient_norm)
        gradients = [parameter.grad for parameter in trainer.model.parameters()]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
    before, unclipped, reported, clipped = norms
    assert before == unclipped == reported > 0.01
    assert clipped == pytest.approx(0.01, rel=1e-5)


def test_groups_of_sequences_change_nothing(config, layers, monkeypatch):
    batch = next(make_batches(config))
    results = []
    for tokens_at_once in (1, 3 * config.sequence_length, 1 << 20):
        monkeypatch.setattr("models.torch_training.TOKENS_AT_ONCE", tokens_at_once)
        trainer = make_trainer(config)
        trainer.load(layers)
        result = trainer.step(batch)
        results.append((result.train_loss, result.gradient_norm))
        assert trainer.mean_loss(batch) == pytest.approx(result.train_loss, rel=1e-5)
    np.testing.assert_allclose(results, results[:1] * 3, rtol=1e-5)


def test_mixed_precision_is_near(config, layers, tokens_BL, targets_BL):
    losses = []
    for compute_dtype in ("float32", "bfloat16"):
        mixed = dataclasses.replace(config, compute_dtype=compute_dtype)
        trainer = make_trainer(mixed)
        trainer.load(layers)
        losses.append(trainer.mean_loss((tokens_BL, targets_BL)))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
