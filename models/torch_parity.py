"""How far JAX and PyTorch come apart when they train one model on the same batches."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from models.functional import StageFunctions, to_layers
from models.torch_training import Batch, TorchTrainer
from models.torch_weights import gradient_layers

# Shape suffixes: N sequences of a step, B microbatch, L sequence.


@dataclass(frozen=True, slots=True)
class Parity:
    """Attributes:
    max_loss_diff: Largest absolute difference of the losses, over all steps.
    max_grad_diff: Largest relative difference of a tensor of the first step's
        gradient: max |a - b| / max |a|, where a is JAX's.
    worst_gradient: Name of that tensor.
    jax_losses, pytorch_losses: Mean loss of each step, before its update.
    """

    max_loss_diff: float
    max_grad_diff: float
    worst_gradient: str
    jax_losses: list[float]
    pytorch_losses: list[float]

    def describe(self) -> str:
        """The report for people."""
        rows = enumerate(zip(self.jax_losses, self.pytorch_losses, strict=True), 1)
        return "\n".join(
            (
                "step    loss (JAX)  loss (PyTorch)  difference",
                *(f"{n:4} {a:13.6f} {b:15.6f} {b - a:11.1e}" for n, (a, b) in rows),
                f"max_loss_diff {self.max_loss_diff:.2e} nats per token",
                f"max_grad_diff {self.max_grad_diff:.2e} ({self.worst_gradient}): "
                "the largest max |a - b| / max |a| over all tensors of the first "
                "step's gradient",
            )
        )


def measure_parity(
    functions: StageFunctions,
    init_optimizer: Callable[[Any], Any],
    step: Callable[..., Any],
    params: Any,
    trainer: TorchTrainer,
    batches: Iterable[Batch],
    microbatch_size: int,
) -> Parity:
    """Trains both and compares them.

    Args:
        functions: The whole model as one stage of JAX.
        init_optimizer: ``init_optimizer(params) -> opt_state``.
        step: ``step(params, opt_state, inputs_NL, targets_NL) -> (params, opt_state,
            mean_loss, gradient_norm)``; it may take its inputs' buffers.
        params: What both start from.
        trainer: PyTorch's.
        batches: One for each step.
        microbatch_size: B; JAX's gradient is summed over microbatches.
    """
    trainer.load(to_layers(params, 0))
    first, *rest = batches
    worst, max_grad_diff = _compare_gradients(
        functions.loss, params, trainer, first, microbatch_size
    )
    opt_state = init_optimizer(params)
    losses = []
    for batch in (first, *rest):
        params, opt_state, jax_loss, _ = step(params, opt_state, *batch)
        losses.append((float(jax_loss), trainer.step(batch).train_loss))
    return Parity(
        max_loss_diff=max(abs(a - b) for a, b in losses),
        max_grad_diff=max_grad_diff,
        worst_gradient=worst,
        jax_losses=[a for a, _ in losses],
        pytorch_losses=[b for _, b in losses],
    )


def relative_differences(expected: Any, found: Any) -> dict[str, float]:
    """max |a - b| / max |a| of each tensor by its name.

    A tensor of zeros gives 0 if the other is zeros as well, else infinity; and so does
    one that is not finite, which would be neither above a limit nor below.
    """
    differences = {}
    for path, a in jax.tree.leaves_with_path(expected):
        b = found
        for key in path:
            b = b[key.key]
        error, scale = np.abs(a - b).max(), np.abs(a).max()
        name = ".".join(key.key for key in path)
        known = np.isfinite(error) and (scale or not error)
        differences[name] = float(error / (scale or 1) if known else np.inf)
    return differences


def _compare_gradients(
    loss, params, trainer: TorchTrainer, batch: Batch, microbatch_size: int
) -> tuple[str, float]:
    gradient = jax.jit(jax.grad(loss))
    total = None
    for start in range(0, len(batch[0]), microbatch_size):
        microbatch = (rows[start : start + microbatch_size] for rows in batch)
        part = jax.tree.map(np.asarray, gradient(params, *microbatch))
        total = part if total is None else jax.tree.map(np.add, total, part)
    loss_tokens = (batch[1] >= 0).sum()
    mean = jax.tree.map(lambda leaf: leaf / loss_tokens.astype(leaf.dtype), total)
    trainer.gradients(batch)
    differences = relative_differences(
        to_layers(mean, 0), gradient_layers(trainer.model)
    )
    return max(differences.items(), key=lambda item: item[1])
