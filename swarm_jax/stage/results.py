"""What a device gives back, and how what it counts gets into the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Arrays = Sequence[np.ndarray]


class Count(Protocol):
    """Joins "add to the gradient sum" and "put the id in the ledger" into one action.

    Both methods are called in the event loop's thread.

    Attributes:
        is_early: From ``start`` on, with delayed updates: whether the gradient belongs
            to the sum of the next step.
    """

    is_early: bool

    def start(self) -> bool:
        """Called just before the device starts; False: abandon the work."""
        ...

    def settle(self, finite: bool, loss_sum: float) -> None:
        """Called once; the gradient is in the sum if and only if ``finite``."""
        ...


@dataclass(frozen=True, slots=True)
class Forward:
    """Attributes:
    y: Encoded output of the stage.
    residuals: What ``backward`` needs; None unless it was asked to be kept.
    finite: Whether all of the output is finite.
    compute_s: Seconds on the device, without waiting in its queue.
    """

    y: Arrays
    residuals: Any
    finite: bool
    compute_s: float


@dataclass(frozen=True, slots=True)
class Backward:
    """Attributes:
    grad_x: Encoded gradient of the stage's input; empty on the first stage.
    loss_sum: Sum of the loss over the microbatch's loss tokens (last stage), else 0.
    finite: Whether the loss and all gradients that were asked for are finite.
    compute_s: Seconds on the device, without waiting in its queue.
    """

    grad_x: Arrays
    loss_sum: float
    finite: bool
    compute_s: float


@dataclass(frozen=True, slots=True)
class Reduced:
    """Attributes:
    squared_norm: Of the gradient that the device took.
    digest: SHA-256 of its bytes.
    """

    squared_norm: float
    digest: str
