"""PyTorch against JAX in every choice of ``GPTConfig``: logits, loss, gradients."""

from dataclasses import fields

import jax
import numpy as np
import pytest
import torch

from models import config as choices
from models import functional
from models.torch_gpt import TorchGPT
from models.torch_parity import relative_differences
from models.torch_weights import gradient_layers, load_layers, parameter_layers
from tests.models.architectures import CHANGES, small

SIZES = {"num_layers", "model_dim", "num_heads", "ffn_dim", "sequence_length"}
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
"""To compile is all that takes time here. What is right must not depend on it: maxout's
gradient did."""

DTYPES = {"compute_dtype", "parameter_dtype"}


def make_params(functions):
    """As after some training: no bias is 0 and no scale is 1.

    Drawn here, since to compile each model's own initial values takes a second.
    """
    generator = np.random.default_rng(3)

    def draw(path, leaf):
        rows = leaf.shape[-2] if path[-1].key == "kernel" else 1
        array = generator.normal(path[-1].key == "scale", 0.3 / rows**0.5, leaf.shape)
        return array.astype(leaf.dtype)

    shapes = jax.eval_shape(lambda: functions.init(7))
    return jax.tree.map_with_path(draw, shapes)


def make_batch(config):
    generator = np.random.default_rng(0)
    shape = (2, 3, config.sequence_length)
    tokens_BL, targets_BL = generator.integers(0, config.vocab_size, shape)
    targets_BL[generator.random(shape[1:]) < 0.2] = -1
    return tokens_BL.astype(np.int32), targets_BL.astype(np.int32)


@pytest.mark.parametrize("name", CHANGES)
def test_logits_loss_and_gradients(name, monkeypatch):
    config = small(name)
    tokens_BL, targets_BL = make_batch(config)
    cross_entropy = functional.cross_entropy
    monkeypatch.setattr(
        functional,
        "cross_entropy",
        lambda logits_BLV, targets_BL: (
            cross_entropy(logits_BLV, targets_BL),
            logits_BLV,
        ),
    )
    functions = functional.make_stage(config, 0, config.num_layers)
    params = make_params(functions)
    loss_and_gradients = jax.jit(
        jax.value_and_grad(functions.loss, has_aux=True), compiler_options=QUICK
    )
    (loss, logits_BLV), gradients = loss_and_gradients(params, tokens_BL, targets_BL)

    model = TorchGPT(config)
    load_layers(model, functional.to_layers(params, 0))
    tokens, targets = torch.from_numpy(tokens_BL), torch.from_numpy(targets_BL)
    found_loss = model.loss(tokens, targets)
    found_loss.backward()
    assert logits_BLV.shape == (*tokens_BL.shape, config.vocab_size)
    np.testing.assert_allclose(model(tokens).detach(), logits_BLV, rtol=1e-5, atol=1e-5)
    assert found_loss.item() == pytest.approx(float(loss), rel=1e-5)
    differences = relative_differences(
        functional.to_layers(gradients, 0), gradient_layers(model)
    )
    assert len(differences) == len(list(model.parameters()))
    assert max(differences.values()) < 1e-4, differences


@pytest.mark.parametrize("name", CHANGES)
def test_mixed_precision_is_near(name):
    config = small(name)
    functions = functional.make_stage(config, 0, config.num_layers)
    model = TorchGPT(config)
    load_layers(model, functional.to_layers(make_params(functions), 0))
    batch = [torch.from_numpy(array) for array in make_batch(config)]
    expected = model.loss(*batch).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(*batch)
    loss.backward()
    assert loss.item() != expected
    assert loss.item() == pytest.approx(expected, rel=0.02)
    gradients = [parameter.grad for parameter in model.parameters()]
    assert torch.nn.utils.get_total_norm(gradients).isfinite()


@pytest.mark.parametrize("name", CHANGES)
def test_parameters_load_into_pytorch_and_come_back(name):
    config = small(name)
    functions = functional.make_stage(config, 0, config.num_layers)
    layers = functional.to_layers(make_params(functions), 0)
    model = TorchGPT(config)
    load_layers(model, layers)
    found = parameter_layers(model)
    leaves = jax.tree.leaves_with_path
    assert [path for path, _ in leaves(found)] == [path for path, _ in leaves(layers)]
    jax.tree.map(np.testing.assert_array_equal, found, layers)


def test_parameters_of_another_model_are_refused():
    config = small("biased")
    functions = functional.make_stage(config, 0, config.num_layers)
    layers = functional.to_layers(make_params(functions), 0)
    with pytest.raises(ValueError, match="embed.positions"):
        load_layers(TorchGPT(small("default")), layers)
    layers["head"]["norm"]["scale"] = np.ones((1,), np.float32)
    with pytest.raises(ValueError, match="head.norm.scale"):
        load_layers(TorchGPT(config), layers)


def test_weight_decay_is_for_the_same_parameters_as_in_jax():
    for name in CHANGES:
        config = small(name)
        functions = functional.make_stage(config, 0, config.num_layers)
        params = jax.eval_shape(lambda functions=functions: functions.init(7))
        decayed = functional.matrix_mask(params)
        sizes = [
            leaf.size
            for leaf, decays in zip(
                jax.tree.leaves(params), jax.tree.leaves(decayed), strict=True
            )
            if decays
        ]
        matrices = TorchGPT(config).matrices()
        assert sum(parameter.numel() for parameter in matrices) == sum(sizes)


def test_every_choice_is_among_the_models():
    configs = [small(name) for name in CHANGES]
    for field, allowed in (
        ("feed_forward", choices.FEED_FORWARDS),
        ("norm", choices.NORMS),
        ("positions", choices.POSITIONS),
        ("head", choices.HEADS),
        ("boundary", choices.BOUNDARIES),
    ):
        assert {getattr(config, field) for config in configs} == set(allowed)
    for field in {entry.name for entry in fields(configs[0])} - SIZES - DTYPES:
        if field != "vocab_size":
            assert len({getattr(config, field) for config in configs}) > 1, field
