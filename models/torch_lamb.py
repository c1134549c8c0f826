"""LAMB in PyTorch (You et al. 2020, algorithm 2), with Adam's bias correction."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """Adam's update and decay, scaled in each tensor to the length of its parameters.

    With m and v the bias-corrected moments of Adam::

        u = m / (sqrt(v) + epsilon) + weight_decay * p
        p -= lr * ||p|| / ||u|| * u

    The ratio is 1 where one of the norms is 0, and has no upper bound.

    Args:
        params: Parameters, or groups of them with a ``weight_decay`` of their own.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ):
        options = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, count=0)
        super().__init__(params, options)

    @torch.no_grad()
    def step(self) -> None:
        """Every parameter must have a gradient."""
        for group in self.param_groups:
            group["count"] += 1
            updates = self._adam(group)
            torch._foreach_add_(updates, group["params"], alpha=group["weight_decay"])
            ratios = map(_trust_ratio, group["params"], updates)
            torch._foreach_mul_(updates, list(ratios))
            torch._foreach_add_(group["params"], updates, alpha=-group["lr"])

    def _adam(self, group: dict[str, Any]) -> list[Tensor]:
        """m / (sqrt(v) + epsilon) of each parameter of a group."""
        (beta1, beta2), count = group["betas"], group["count"]
        gradients = [parameter.grad for parameter in group["params"]]
        first, second = self._moments(group["params"])
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        roots = torch._foreach_div(second, 1 - beta2**count)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(first, 1 - beta1**count)
        torch._foreach_div_(updates, roots)
        return updates

    def _moments(
        self, parameters: list[torch.nn.Parameter]
    ) -> tuple[list[Tensor], list[Tensor]]:
        for parameter in parameters:
            if not self.state[parameter]:
                for name in ("first", "second"):
                    self.state[parameter][name] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        return [s["first"] for s in states], [s["second"] for s in states]


def _trust_ratio(parameter: Tensor, update: Tensor) -> Tensor:
    """A tensor on the device: nothing waits for it."""
    lengths = parameter.norm(), update.norm()
    moves = (lengths[0] > 0) & (lengths[1] > 0)
    return torch.where(moves, lengths[0] / lengths[1], 1.0)
