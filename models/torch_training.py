"""Training of the PyTorch model: schedule, clipping, AdamW, steps of many sequences."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from models.torch_gpt import TorchGPT

# Shape suffixes: N sequences of a step, L sequence.


class OptimizerSettings(Protocol):
    """Attributes:
    learning_rate: Peak, reached after ``warmup_steps``.
    final_learning_rate: At the last step.
    clip_norm: Longer gradients are scaled down to this; None for no clipping.
    """

    learning_rate: float
    warmup_steps: int
    final_learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float | None


@dataclass(frozen=True, slots=True)
class StepResult:
    """Attributes:
    loss: Mean over the step's loss tokens, before the update.
    gradient_norm: Of that mean's gradient, before clipping.
    """

    loss: float
    gradient_norm: float


def learning_rate(settings: OptimizerSettings, count: int, steps: int) -> float:
    """Linear warm-up from 0, then a cosine that ends at ``steps``.

    Args:
        count: Updates already made.
        steps: Updates of the whole run.
    """
    peak, final = settings.learning_rate, settings.final_learning_rate
    if count < settings.warmup_steps:
        return peak * count / settings.warmup_steps
    length = max(steps - settings.warmup_steps, 1)
    progress = min((count - settings.warmup_steps) / length, 1.0)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


class TorchTrainer:
    """Plain training of the whole model with AdamW.

    Args:
        model: Trained in place, on the device that it is on.
        settings: Optimizer and schedule.
        steps: Updates of the whole run.
        sequences_at_once: How many sequences go through the model together; the
            gradients of a step are summed over these groups.
        compute_dtype: Lower than the parameters' for mixed precision (autocast).
    """

    def __init__(
        self,
        model: TorchGPT,
        settings: OptimizerSettings,
        *,
        steps: int,
        sequences_at_once: int,
        compute_dtype: torch.dtype,
    ):
        self.model = model
        self._settings = settings
        self._steps = steps
        self._sequences_at_once = sequences_at_once
        self._compute_dtype = compute_dtype
        decays = ((model.matrices(), settings.weight_decay), (model.scales(), 0.0))
        self._optimizer = torch.optim.AdamW(
            [{"params": group, "weight_decay": decay} for group, decay in decays],
            lr=0.0,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )
        self._count = 0

    def step(self, inputs_NL: np.ndarray, targets_NL: np.ndarray) -> StepResult:
        """One update from the sequences of a step."""
        loss = self.gradients(inputs_NL, targets_NL)
        gradient_norm = self._clip()
        rate = learning_rate(self._settings, self._count, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._count += 1
        return StepResult(loss, gradient_norm)

    def gradients(self, inputs_NL: np.ndarray, targets_NL: np.ndarray) -> float:
        """Puts the gradient of the mean loss into the parameters; returns that loss."""
        self._optimizer.zero_grad()
        loss_tokens = int((targets_NL >= 0).sum())
        loss_sum = 0.0
        for inputs, targets in self._groups(inputs_NL, targets_NL):
            loss = self._loss(inputs, targets)
            (loss / loss_tokens).backward()
            loss_sum += loss.item()
        return loss_sum / loss_tokens

    def mean_loss(self, inputs_NL: np.ndarray, targets_NL: np.ndarray) -> float:
        """Loss only, for validation."""
        with torch.inference_mode():
            groups = self._groups(inputs_NL, targets_NL)
            loss_sum = sum(self._loss(*group).item() for group in groups)
        return loss_sum / int((targets_NL >= 0).sum())

    def _groups(self, *arrays_NL: np.ndarray):
        device = self.model.output.weight.device
        tensors = (torch.from_numpy(array).to(device) for array in arrays_NL)
        splits = (tensor.split(self._sequences_at_once) for tensor in tensors)
        return zip(*splits, strict=True)

    def _loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = self.model.output.weight
        mixed = self._compute_dtype != weight.dtype
        with torch.autocast(weight.device.type, self._compute_dtype, enabled=mixed):
            return self.model.loss(inputs, targets)

    def _clip(self) -> float:
        """Scales by ``clip_norm / norm``, without the epsilon of PyTorch's own."""
        gradients = [parameter.grad for parameter in self.model.parameters()]
        norm = torch.nn.utils.get_total_norm(gradients)
        clip_norm = self._settings.clip_norm
        if clip_norm is not None and norm > clip_norm:
            torch._foreach_mul_(gradients, clip_norm / norm)
        return norm.item()
