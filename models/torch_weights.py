"""Parameters and gradients of the PyTorch model as numpy arrays by layer, and back.

The format is that of ``functional.to_layers``, for example ``layers["layers.3"]
["attention"]["qkv"]["kernel"]``. There a matrix is ``kernel`` [inputs, outputs], a norm
has a ``scale``, and a table that two layers share is in "embed" alone.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.torch_gpt import TorchGPT

WHOLE = ("embed", "head")
"""Layers without a number in their name."""


def load_layers(model: TorchGPT, layers: Mapping[str, Any]) -> None:
    """Takes the parameters of all layers.

    Raises:
        ValueError: They are not those of this model.
    """
    arrays = dict(_flat(layers))
    expected = {name: _oriented(name, tensor) for name, tensor in _named(model)}
    wrong = sorted(arrays.keys() ^ expected.keys()) or [
        name for name, tensor in expected.items() if arrays[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(
            f"These are the parameters of another model; the first that does not fit "
            f"is {'.'.join(wrong[0])}. Give those of the model's own config"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            # One at a time: a view of jax's memory is not for PyTorch to write to.
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))


def parameter_layers(model: TorchGPT) -> dict[str, Any]:
    """The parameters; copies, in their dtype."""
    return _layers(model, lambda parameter: parameter.detach())


def gradient_layers(model: TorchGPT) -> dict[str, Any]:
    """The gradients."""
    return _layers(model, lambda parameter: parameter.grad)


def _layers(model: TorchGPT, value: Callable[[nn.Parameter], Tensor]) -> dict[str, Any]:
    layers: dict[str, Any] = {}
    for name, parameter in _named(model):
        tree = layers
        for key in name[:-1]:
            tree = tree.setdefault(key, {})
        tree[name[-1]] = _oriented(name, value(parameter)).cpu().numpy().copy()
    return layers


def _named(model: TorchGPT) -> Iterator[tuple[tuple[str, ...], nn.Parameter]]:
    """Each parameter once, as ("layers.3", "attention", "qkv", "kernel"), parameter."""
    for name, parameter in model.named_parameters():
        *modules, leaf = name.split(".")
        if leaf == "weight":
            leaf = "kernel" if parameter.dim() == 2 else "scale"
        words = 1 if modules[0] in WHOLE else 2
        yield (".".join(modules[:words]), *modules[words:], leaf), parameter


def _oriented(name: tuple[str, ...], tensor: Tensor) -> Tensor:
    return tensor.T if name[-1] == "kernel" else tensor


def _flat(
    tree: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*path, key))
        else:
            yield (*path, key), np.asarray(value)
