"""Fifty steps in PyTorch beside the control's, with either optimizer."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from models.functional import make_stage, matrix_mask
from models.torch_parity import measure_parity, relative_differences
from models.torch_training import TorchTrainer
from swarm_jax.stage.optimizer import make_optimizer
from swarm_jax.stage.whole_model import make_train_step
from tests.models.architectures import small

STEPS = 50


def make_batches(config):
    """Random sequences that all count on by one, so that there is much to learn."""
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        first_N1 = generator.integers(0, config.vocab_size, (4, 1))
        rows_NL = (first_N1 + np.arange(config.sequence_length + 1)) % config.vocab_size
        targets_NL = np.where(generator.random((4, 12)) < 0.2, -1, rows_NL[:, 1:])
        yield rows_NL[:, :-1].astype(np.int32), targets_NL.astype(np.int32)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "model"),
    [("adamw", "cosine", "grouped_padded"), ("lamb", "linear", "shared")],
)
def test_training_stays_together(optimizer, schedule, model):
    config = small(model)
    settings = SimpleNamespace(
        name=optimizer,
        schedule=schedule,
        learning_rate=1e-2,
        warmup_steps=5,
        final_learning_rate=1e-3,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-6,
        weight_decay=0.1,
        clip_norm=0.5,
    )
    functions = make_stage(config, 0, config.num_layers)
    params = functions.init(7)
    init_optimizer, step = make_train_step(
        functions.loss,
        make_optimizer(settings, STEPS, matrix_mask(jax.eval_shape(lambda: params))),
        clip_norm=0.5,
        microbatch_size=2,
    )
    parity = measure_parity(
        functions,
        init_optimizer,
        step,
        params,
        TorchTrainer(config, settings, STEPS, "cpu"),
        make_batches(config),
        microbatch_size=2,
    )
    assert parity.max_loss_diff < 1e-3
    assert parity.max_grad_diff < 1e-4
    assert parity.jax_losses[-1] < parity.jax_losses[0] - 0.3
    report = parity.describe()
    assert f"{STEPS:4} " in report and "max_grad_diff" in report


def test_parity_sees_a_wrong_gradient():
    generator = np.random.default_rng(0)
    right = {"head": {"scale": np.ones(3), "kernel": generator.normal(size=(4, 5))}}
    wrong = jax.tree.map(np.array, right)
    wrong["head"]["kernel"][2, 3] += 0.5 * np.abs(right["head"]["kernel"]).max()
    differences = relative_differences(right, wrong)
    assert differences == {"head.scale": 0, "head.kernel": pytest.approx(0.5)}
    wrong["head"]["scale"][1] = np.nan
    assert relative_differences(right, wrong)["head.scale"] == np.inf
    zeros = {"bias": np.zeros(2)}
    assert relative_differences(zeros, zeros) == {"bias": 0}
    assert relative_differences(zeros, {"bias": np.ones(2)}) == {"bias": np.inf}
