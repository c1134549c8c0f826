"""Training of the PyTorch model: clipping, AdamW or LAMB, steps of many sequences."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from models.config import GPTConfig
from models.schedule import learning_rate
from models.torch_gpt import TorchGPT
from models.torch_lamb import Lamb
from models.torch_weights import load_layers

# Shape suffixes: N sequences of a step, L sequence.


TOKENS_AT_ONCE = 8192
"""A step's sequences go through the model in groups of about this many tokens."""


class OptimizerSettings(Protocol):
    """Attributes:
    name: "adamw", "adam" (the same; its decay is 0) or "lamb".
    schedule: "cosine", "linear" or "constant".
    learning_rate: Peak, reached after ``warmup_steps``.
    final_learning_rate: At the last step, unless it is constant.
    clip_norm: Longer gradients are scaled down to this; None for no clipping.
    """

    name: str
    schedule: str
    learning_rate: float
    warmup_steps: int
    final_learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float | None


Batch = tuple[np.ndarray, np.ndarray]
"""inputs_NL and targets_NL (negative where no loss is taken), int32."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Attributes:
    step: Counted from 1.
    train_loss: Mean over the step's loss tokens, before the update.
    gradient_norm: Of that mean's gradient, before clipping.
    learning_rate: Of the update.
    step_s: Wall time.
    """

    step: int
    train_loss: float
    gradient_norm: float
    learning_rate: float
    step_s: float


class TorchTrainer:
    """Plain training of the whole model.

    Products are in bfloat16 (autocast) where the config says so, and for "auto" on a
    GPU.

    Args:
        config: Of the model.
        settings: Optimizer and schedule.
        steps: Updates of the whole run.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        config: GPTConfig,
        settings: OptimizerSettings,
        steps: int,
        device: str,
    ):
        self.model = TorchGPT(config).to(device)
        self._settings = settings
        self._steps = steps
        self._device = device
        self._mixed = config.compute_dtype == "bfloat16" or (
            config.compute_dtype == "auto" and device == "cuda"
        )
        self._sequences_at_once = max(1, TOKENS_AT_ONCE // config.sequence_length)
        self._optimizer = make_optimizer(self.model, settings)
        self._count = 0

    def load(self, layers: Mapping[str, Any]) -> None:
        """Takes the parameters of all layers, as ``functional.to_layers`` gives them.

        Before the first step: the optimizer's state stays as it is.
        """
        load_layers(self.model, layers)

    def step(self, batch: Batch) -> StepResult:
        """One update from the sequences of a step."""
        begun_s = time.perf_counter()
        loss = self.gradients(batch)
        gradient_norm = self._clip()
        rate = learning_rate(self._settings, self._count, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._count += 1
        step_s = time.perf_counter() - begun_s
        return StepResult(self._count, loss, gradient_norm, rate, step_s)

    def gradients(self, batch: Batch) -> float:
        """Puts the gradient of the mean loss into the parameters; returns that loss."""
        self._optimizer.zero_grad()
        loss_tokens = _loss_tokens(batch)
        loss_sum = 0.0
        for inputs, targets in self._groups(batch):
            loss = self._loss(inputs, targets)
            (loss / loss_tokens).backward()
            loss_sum += loss.item()
        return loss_sum / loss_tokens

    def mean_loss(self, batch: Batch) -> float:
        """Loss only, for validation."""
        with torch.inference_mode():
            losses = [self._loss(*group).item() for group in self._groups(batch)]
        return sum(losses) / _loss_tokens(batch)

    def peak_device(self) -> dict[str, int]:
        """``peak_device_bytes``, most that tensors have held so far; {} on a CPU."""
        if self._device == "cpu":
            return {}
        return {"peak_device_bytes": torch.cuda.max_memory_allocated()}

    def _groups(self, batch: Batch):
        tensors = (torch.from_numpy(array).to(self._device) for array in batch)
        splits = (tensor.split(self._sequences_at_once) for tensor in tensors)
        return zip(*splits, strict=True)

    def _loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._mixed):
            return self.model.loss(inputs, targets)

    def _clip(self) -> float:
        """Scales by ``clip_norm / norm``, without the epsilon of PyTorch's own."""
        gradients = [parameter.grad for parameter in self.model.parameters()]
        norm = torch.nn.utils.get_total_norm(gradients)
        clip_norm = self._settings.clip_norm
        if clip_norm is not None and norm > clip_norm:
            torch._foreach_mul_(gradients, clip_norm / norm)
        return norm.item()


def make_optimizer(
    model: TorchGPT, settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """AdamW or LAMB, with decay of matrices and tables only; its rate is set later."""
    decays = ((model.matrices(), settings.weight_decay), (model.vectors(), 0.0))
    groups = [{"params": group, "weight_decay": decay} for group, decay in decays]
    betas = settings.beta1, settings.beta2
    if settings.name == "lamb":
        return Lamb(groups, lr=0.0, betas=betas, eps=settings.epsilon)
    return torch.optim.AdamW(
        groups, lr=0.0, betas=betas, eps=settings.epsilon, fused=True
    )


def _loss_tokens(batch: Batch) -> int:
    return int((batch[1] >= 0).sum())
