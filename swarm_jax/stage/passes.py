"""Forward and backward of one stage, before ``jit``.

Residuals are what ``jax.vjp`` keeps between forward and backward. They leave the jitted
forward as a pytree, without the weights: those would come out as fresh copies for every
microbatch. Backward puts them back. Where they were not kept, forward is computed again
in the same program: the gradients are equal but for rounding, since the compiler may
join operations of the two passes.

A gradient that is not finite leaves the sum as it is. That is decided on the device, in
the same program, so no one ever has to take a gradient out again. What goes out is
checked as it was encoded: codecs hide nothing that is not finite.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from swarm_jax.stage.codec import BoundaryCodec
from swarm_jax.stage.layout import Layout

# Shape suffixes: B microbatch, L sequence, D model dimension.

LARGEST_GRADIENT = 1e30
"""What a counted gradient stays below: 10^8 of them still have a finite sum."""

Tree = Any
Arrays = tuple[jax.Array, ...]


class StageFunctions(Protocol):
    """One stage of a model as pure functions of plain pytrees.

    ``apply`` is used unless ``is_last``, ``loss`` only if ``is_last``. The first stage
    takes ``tokens_BL`` for ``x``. ``tied`` is the path of the parameter that another
    stage has a copy of, or None.
    """

    is_first: bool
    is_last: bool
    tied: tuple[str, ...] | None
    init: Callable[[int], Tree]
    apply: Callable[[Tree, jax.Array], jax.Array]
    loss: Callable[[Tree, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True, slots=True)
class Passes:
    """Attributes:
    functions: One stage of the model.
    input_codec, output_codec: As in ``make_stage_programs``.
    layout: Where arrays are on several devices; None: there is one.
    """

    functions: StageFunctions
    input_codec: BoundaryCodec | None
    output_codec: BoundaryCodec | None
    layout: Layout | None

    def forward(self, weights: Tree, x: Arrays):
        y_BLD = self.functions.apply(weights, self._input(x))
        y = self.output_codec.activations.encode(y_BLD)
        return y, _all_finite(y)

    def forward_keeping(self, weights: Tree, x: Arrays):
        y_BLD, residuals = self._keep(weights, x)
        y = self.output_codec.activations.encode(y_BLD)
        return y, residuals, _all_finite(y)

    def backward(self, weights: Tree, residuals: Tree, grad_y: Arrays):
        grad_x, _ = self._pull(weights, residuals, grad_y)
        return grad_x, _all_finite(grad_x)

    def backward_adding(
        self, weights: Tree, residuals: Tree, grad_y: Arrays, gradient_sum: Tree
    ):
        grad_x, gradients = self._pull(weights, residuals, grad_y)
        finite, gradient_sum = add_if_finite(gradient_sum, gradients, grad_x)
        return grad_x, finite, gradient_sum

    def recompute_backward(self, weights: Tree, x: Arrays, grad_y: Arrays):
        _, residuals = self._keep(weights, x)
        return self.backward(weights, residuals, grad_y)

    def recompute_backward_adding(
        self, weights: Tree, x: Arrays, grad_y: Arrays, gradient_sum: Tree
    ):
        _, residuals = self._keep(weights, x)
        return self.backward_adding(weights, residuals, grad_y, gradient_sum)

    def loss(self, weights: Tree, x: Arrays, targets_BL: jax.Array):
        return self.functions.loss(weights, self._input(x), self._spread(targets_BL))

    def loss_backward(self, weights: Tree, x: Arrays, targets_BL: jax.Array):
        grad_x, _, loss_sum = self._loss_pull(weights, x, targets_BL)
        return grad_x, loss_sum, _all_finite((grad_x, loss_sum))

    def loss_backward_adding(
        self, weights: Tree, x: Arrays, targets_BL: jax.Array, gradient_sum: Tree
    ):
        grad_x, gradients, loss_sum = self._loss_pull(weights, x, targets_BL)
        finite, gradient_sum = add_if_finite(
            gradient_sum, gradients, (grad_x, loss_sum)
        )
        return grad_x, loss_sum, finite, gradient_sum

    def _input(self, x: Arrays) -> jax.Array:
        x = self._spread(x)
        return self.input_codec.activations.decode(x) if self.input_codec else x[0]

    def _spread(self, arrays: Tree) -> Tree:
        """Each device's sequences of what came as a microbatch."""
        if self.layout is None:
            return arrays
        places = self.layout.spread(arrays)
        return jax.lax.with_sharding_constraint(arrays, places)

    def _vjp(self, function: Callable[..., jax.Array], weights: Tree, x: Arrays):
        """Differentiates by the weights, and by the input unless it is tokens."""
        if self.input_codec is None:
            tokens_BL = self._input(x)
            return jax.vjp(lambda weights: function(weights, tokens_BL), weights)
        return jax.vjp(function, weights, self._input(x))

    def _keep(self, weights: Tree, x: Arrays) -> tuple[jax.Array, Tree]:
        y_BLD, vjp = self._vjp(self.functions.apply, weights, x)
        vjp.args_res[0] = None
        return y_BLD, vjp

    def _pull(self, weights: Tree, residuals: Tree, grad_y: Arrays):
        residuals.args_res[0] = weights
        grad_y_BLD = self.output_codec.gradients.decode(self._spread(grad_y))
        return self._split(residuals(grad_y_BLD))

    def _loss_pull(self, weights: Tree, x: Arrays, targets_BL: jax.Array):
        targets_BL = self._spread(targets_BL)

        def loss(weights: Tree, x: jax.Array) -> jax.Array:
            return self.functions.loss(weights, x, targets_BL)

        loss_sum, vjp = self._vjp(loss, weights, x)
        return *self._split(vjp(jnp.ones_like(loss_sum))), loss_sum

    def _split(self, gradients: tuple[Tree, ...]) -> tuple[Arrays, Tree]:
        """Encoded gradient of the input, gradient of the weights."""
        of_weights = gradients[0]
        if self.layout is not None:
            of_weights = jax.lax.with_sharding_constraint(of_weights, self.layout.sums)
        if self.input_codec is None:
            return (), of_weights
        return self.input_codec.gradients.encode(gradients[1]), of_weights


def add_if_finite(
    gradient_sum: Tree, gradients: Tree, others: Tree
) -> tuple[jax.Array, Tree]:
    """Adds ``gradients`` if they and ``others`` are finite.

    The gradients are checked and not the new sum, which would be read twice more: that
    took 5 % of a backward pass of 600 million parameters. So that no sum of finite
    gradients overflows, "finite" means below ``LARGEST_GRADIENT``.
    """
    bounded = [
        jnp.all(jnp.abs(leaf) < LARGEST_GRADIENT) for leaf in jax.tree.leaves(gradients)
    ]
    finite = jnp.all(jnp.stack([*bounded, _all_finite(others)]))
    added = jax.tree.map(
        lambda total, gradient: jnp.where(
            finite, total + gradient.astype(total.dtype), total
        ),
        gradient_sum,
        gradients,
    )
    return finite, added


def _all_finite(tree: Tree) -> jax.Array:
    flags = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(flags)) if flags else jnp.array(True)
