"""Training in PyTorch: schedule, decay, clipping, groups, mixed precision."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import optax
import pytest
import torch

from models.functional import to_layers
from models.schedule import learning_rate
from models.torch_training import TorchTrainer

SETTINGS = SimpleNamespace(
    name="adamw",
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


def make_batches(config, count=STEPS):
    shape = (4, config.sequence_length)
    generator = np.random.default_rng(0)
    for _ in range(count):
        inputs, targets = generator.integers(0, config.vocab_size, (2, *shape))
        targets[generator.random(shape) < 0.2] = -1
        yield inputs.astype(np.int32), targets.astype(np.int32)


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
