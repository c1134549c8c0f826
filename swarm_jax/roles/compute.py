"""What a stage server needs of its device.

Three adapters: threaded on a device (``stage.threaded``, live), inline with real JAX
(``stage.inline``, tests on a virtual clock), modelled (``sim``). All methods are called
in the event loop's thread. Arrays are numpy arrays, encoded as they travel.

A stage's device runs one operation at a time, backward before forward, older before
younger (``order``). Operations that read or change parameters or the gradient sum take
their place in the same queue, so that each sees the effect of those before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from swarm_jax.errors import Abandoned as Abandoned

Arrays = Sequence[np.ndarray]


class Count(Protocol):
    """Joins "add to the gradient sum" and "put the id in the ledger" into one action.

    Both methods are called in the event loop's thread, also when the task that asked
    for the backward pass was cancelled meanwhile.

    Attributes:
        is_early: From ``start`` on, with delayed updates: whether the gradient belongs
            to the sum of the next step.
    """

    is_early: bool

    def start(self) -> bool:
        """Called just before the device starts; False: abandon the work."""
        ...

    def settle(self, finite: bool, loss_sum: float) -> None:
        """Called once when it is known whether the gradient is in the sum.

        It is in the sum if and only if ``finite``. ``loss_sum`` is the microbatch's on
        the last stage, 0 elsewhere.
        """
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
    finite: Whether the loss and all gradients are finite.
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


class Compute(Protocol):
    """One stage on one device: parameters, optimizer state, one gradient sum.

    Its shapes are known from the start; what is asked of it before it is ready waits.
    With delayed updates it has a second sum, of the next step, and the parameters
    before the last update, with which the gradients of this step are taken: they belong
    to the state.

    Attributes:
        input_specs: (dtype name, shape) of each array that ``forward`` takes.
        gradient_specs: The same for ``backward``'s ``grad_y``.
        sum_specs: The same for the gradient sum, leaf by leaf.
        state_specs: The same for ``state``.
        tied_leaf: Which of ``sum_specs`` is of a table that another stage has a copy
            of; None if there is none.
        queued: Operations that wait for the device.
    """

    input_specs: tuple[tuple[str, tuple[int, ...]], ...]
    gradient_specs: tuple[tuple[str, tuple[int, ...]], ...]
    sum_specs: tuple[tuple[str, tuple[int, ...]], ...]
    state_specs: tuple[tuple[str, tuple[int, ...]], ...]
    tied_leaf: int | None
    queued: int

    async def ready(self) -> None:
        """Returns when programs are compiled and the initial parameters are there."""
        ...

    async def forward(
        self, x: Arrays, *, keep: bool, order: int, previous: int = 0
    ) -> Forward:
        """Runs a stage that is not the last one.

        Args:
            previous: With the parameters before so many of the last updates, as of now;
                so does all that follows from the residuals.

        Raises:
            Abandoned: These parameters are gone.
        """
        ...

    async def backward(
        self, residuals: Any, grad_y: Arrays, *, count: Count | None, order: int
    ) -> Backward:
        """Consumes ``residuals``. Without ``count`` nothing is added to the sum.

        Raises:
            Abandoned: ``count.start()`` returned False.
        """
        ...

    async def loss_backward(
        self,
        x: Arrays,
        targets: np.ndarray,
        *,
        count: Count | None,
        order: int,
        previous: int = 0,
    ) -> Backward:
        """Forward, loss and backward of the last stage in one call.

        Args:
            targets: int32 [B, L]; negative where no loss is taken.
            previous: As in ``forward``.

        Raises:
            Abandoned: ``count.start()`` returned False, or these parameters are gone.
        """
        ...

    async def loss(self, x: Arrays, targets: np.ndarray, *, order: int) -> float:
        """Sum of the loss over the loss tokens; forward only (validation)."""
        ...

    async def gradient_sum(
        self, scale: float, tied_scale: float | None = None
    ) -> list[np.ndarray]:
        """The gradient sum times ``scale``, leaf by leaf. The sum is left as it is.

        Args:
            tied_scale: For the tied leaf; None: it is as the others.
        """
        ...

    async def add_to_sum(self, gradients: Arrays) -> bool:
        """Adds a stage peer's gradient sum; False, and nothing added, if not finite."""
        ...

    async def load_reduced(self, gradients: Arrays) -> Reduced:
        """Takes the all-reduced gradient into a buffer.

        The last stage leaves the tied leaf out of the norm: the first one counts it.
        """
        ...

    async def reduce_alone(self, scale: float) -> float:
        """Takes the gradient sum times ``scale`` into the buffer; its squared norm.

        Both are what ``load_reduced`` of ``gradient_sum(scale)`` would give, to the
        bit, but the gradient goes nowhere but where parameters are updated. Not for a
        stage with a tied leaf.
        """
        ...

    async def apply(self, gradient_norm: float) -> None:
        """Optimizer update from the buffer; clears buffer and gradient sum.

        With delayed updates the sum of the next step takes the place of this one's. The
        parameters with which the step's gradients were taken are kept until
        ``forget_previous``, or the next change of parameters.

        Args:
            gradient_norm: Norm of the gradient over all stages, for clipping.
        """
        ...

    async def skip(self) -> None:
        """Goes on to the next step without an update: else as ``apply``."""
        ...

    def forget_previous(self) -> None:
        """Drops the parameters of the step before, and its tied gradient."""
        ...

    async def previous_tied(self) -> np.ndarray:
        """The tied leaf of the last update's gradient; kept like the parameters before.

        Raises:
            Abandoned: It is gone.
        """
        ...

    async def clear(self) -> None:
        """Clears buffer and gradient sums; returns at once if it is not ready yet."""
        ...

    async def state(self) -> list[np.ndarray]:
        """What a stage peer needs, leaf by leaf.

        Parameters and optimizer state; then, with delayed updates, the parameters
        before the last one, as gradients are taken with them.
        """
        ...

    async def load_state(self, state: Arrays) -> None:
        """Replaces what ``state`` gives; clears buffer and gradient sums.

        Raises:
            ValueError: ``state`` does not have the shapes of this stage.
        """
        ...

    async def reset(self) -> None:
        """Parameters and optimizer state as at step 0; clears buffer and sums."""
        ...

    async def digest(self) -> str:
        """Hash of the parameters' bytes: equal on replicas of one device kind."""
        ...

    def take_record(self) -> dict[str, int]:
        """What the device did since the last call, for metrics, by name."""
        ...

    def close(self) -> None:
        """Stops the device's thread, if it has one."""
        ...
