"""The jitted programs of one stage.

Parameters exist twice when the compute dtype differs: masters, which the optimizer
changes, and *weights*, their cast copy, made once per step. Gradients are taken with
respect to the weights and summed in the masters' dtype.

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
import optax

from swarm_jax.stage.codec import BoundaryCodec, Specs
from swarm_jax.stage.optimizer import clip_by_given_norm, squared_norm

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
class StagePrograms:
    """Jitted functions of plain pytrees; arrays at their edges are encoded.

    Every ``finite`` is a bool scalar over all that the program hands on. Programs that
    return a sum were given it (donated): the caller's is gone.

    Attributes:
        input_specs: dtype name and shape of each array in ``x``.
        gradient_specs: The same for ``grad_y``; empty on the last stage.
        targets_spec: The same for the last stage's targets.
        tied_leaf: Which leaf of the gradient is that of a parameter that another stage
            has a copy of; None if there is none.
        cast: ``(params) -> weights``; gives ``params`` itself where no dtype differs.
        init_optimizer: ``(params) -> opt_state``.
        zeros: ``() -> gradient_sum``.
        forward: ``(weights, x) -> (y, finite)``.
        forward_keeping: ``(weights, x) -> (y, residuals, finite)``.
        backward: ``(weights, residuals, grad_y) -> (grad_x, finite)``.
        backward_adding: ``(weights, residuals, grad_y, sum) -> (grad_x, finite, sum)``.
        recompute_backward: ``(weights, x, grad_y) -> (grad_x, finite)``.
        recompute_backward_adding: ``(weights, x, grad_y, sum) -> (grad_x, finite,
            sum)``.
        loss: ``(weights, x, targets_BL) -> loss_sum``.
        loss_backward: ``(weights, x, targets_BL) -> (grad_x, loss_sum, finite)``.
        loss_backward_adding: ``(weights, x, targets_BL, sum) -> (grad_x, loss_sum,
            finite, sum)``.
        add: ``(sum, tree) -> (finite, sum)``; the sum is as it was unless finite.
        scale: ``(sum, scale, tied_scale) -> tree``: the tied leaf by its own.
        squared_norm: ``(tree) -> ()`` in the parameters' dtype. What is tied counts on
            the first stage.
        update: ``(params, opt_state, gradients, gradient_norm) -> (params, opt_state,
            weights, done)``; params and opt_state are donated, ``done`` is a scalar to
            wait for.
        update_program: What ``update`` runs on the device.
        apart: ``(params) -> params`` in buffers that the weights do not share.
        copy: ``(tree) -> tree`` in buffers of its own.
    """

    input_specs: Specs
    gradient_specs: Specs
    targets_spec: tuple[str, tuple[int, ...]]
    tied_leaf: int | None
    cast: Callable[..., Any]
    init_optimizer: Callable[..., Any]
    zeros: Callable[..., Any]
    forward: Callable[..., Any]
    forward_keeping: Callable[..., Any]
    backward: Callable[..., Any]
    backward_adding: Callable[..., Any]
    recompute_backward: Callable[..., Any]
    recompute_backward_adding: Callable[..., Any]
    loss: Callable[..., Any]
    loss_backward: Callable[..., Any]
    loss_backward_adding: Callable[..., Any]
    add: Callable[..., Any]
    scale: Callable[..., Any]
    squared_norm: Callable[..., Any]
    update: Callable[..., Any]
    update_program: Callable[..., Any]
    apart: Callable[..., Any]
    copy: Callable[..., Any]


def make_stage_programs(
    functions: StageFunctions,
    cast: Callable[[Tree], Tree],
    optimizer: optax.GradientTransformation,
    *,
    input_codec: BoundaryCodec | None,
    output_codec: BoundaryCodec | None,
    tokens_shape: tuple[int, int],
    clip_norm: float | None,
) -> StagePrograms:
    """Builds the programs; nothing is compiled before its first call.

    Args:
        cast: ``cast(params) -> weights`` in the compute dtype.
        input_codec: Of the boundary before the stage; None for the first one.
        output_codec: Of the boundary after it; None for the last one.
        tokens_shape: (B, L).
        clip_norm: Gradients longer than this are scaled down; None for no clipping.
    """
    shapes = jax.eval_shape(lambda: functions.init(0))
    is_cast = jax.eval_shape(cast, shapes) != shapes
    tokens_spec = ("int32", tuple(tokens_shape))
    assert (input_codec is None) == functions.is_first, input_codec
    assert (output_codec is None) == functions.is_last, output_codec
    passes = _Passes(functions, input_codec, output_codec)
    tied_leaf = _find(shapes, functions.tied)
    uncounted = tied_leaf if functions.is_last else None

    def scale(tree, scale, tied_scale):
        leaves, structure = jax.tree.flatten(tree)
        factors = (tied_scale if i == tied_leaf else scale for i in range(len(leaves)))
        scaled = [leaf * by for leaf, by in zip(leaves, factors, strict=True)]
        return jax.tree.unflatten(structure, scaled)

    def counted_norm(tree):
        leaves = enumerate(jax.tree.leaves(tree))
        return squared_norm([leaf for i, leaf in leaves if i != uncounted])

    def update(params, opt_state, gradients, gradient_norm):
        gradients = clip_by_given_norm(gradients, gradient_norm, clip_norm)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        weights = cast(params) if is_cast else None
        return params, opt_state, weights, jnp.isfinite(gradient_norm)

    jitted_update = jax.jit(update, donate_argnums=(0, 1))

    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def update_sharing(*args):
        params, opt_state, weights, done = jitted_update(*args)
        return params, opt_state, weights if is_cast else params, done

    return StagePrograms(
        input_specs=input_codec.activations.specs if input_codec else (tokens_spec,),
        gradient_specs=output_codec.gradients.specs if output_codec else (),
        targets_spec=tokens_spec,
        tied_leaf=tied_leaf,
        cast=jax.jit(cast) if is_cast else lambda params: params,
        init_optimizer=jax.jit(optimizer.init),
        zeros=jax.jit(lambda: jax.tree.map(jnp.zeros_like, shapes)),
        forward=jax.jit(passes.forward),
        forward_keeping=jax.jit(passes.forward_keeping),
        backward=jax.jit(passes.backward),
        backward_adding=jax.jit(passes.backward_adding, donate_argnums=3),
        recompute_backward=jax.jit(passes.recompute_backward),
        recompute_backward_adding=jax.jit(
            passes.recompute_backward_adding, donate_argnums=3
        ),
        loss=jax.jit(passes.loss),
        loss_backward=jax.jit(passes.loss_backward),
        loss_backward_adding=jax.jit(passes.loss_backward_adding, donate_argnums=3),
        add=jax.jit(
            lambda total, tree: _add_if_finite(total, tree, ()), donate_argnums=0
        ),
        scale=jax.jit(scale),
        squared_norm=jax.jit(counted_norm),
        update=update_sharing,
        update_program=jitted_update,
        apart=(lambda params: params) if is_cast else copy,
        copy=copy,
    )


@dataclass(frozen=True, slots=True)
class _Passes:
    """Forward and backward of one stage, before ``jit``."""

    functions: StageFunctions
    input_codec: BoundaryCodec | None
    output_codec: BoundaryCodec | None

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
        finite, gradient_sum = _add_if_finite(gradient_sum, gradients, grad_x)
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
        return self.functions.loss(weights, self._input(x), targets_BL)

    def loss_backward(self, weights: Tree, x: Arrays, targets_BL: jax.Array):
        grad_x, _, loss_sum = self._loss_pull(weights, x, targets_BL)
        return grad_x, loss_sum, _all_finite((grad_x, loss_sum))

    def loss_backward_adding(
        self, weights: Tree, x: Arrays, targets_BL: jax.Array, gradient_sum: Tree
    ):
        grad_x, gradients, loss_sum = self._loss_pull(weights, x, targets_BL)
        finite, gradient_sum = _add_if_finite(
            gradient_sum, gradients, (grad_x, loss_sum)
        )
        return grad_x, loss_sum, finite, gradient_sum

    def _input(self, x: Arrays) -> jax.Array:
        return self.input_codec.activations.decode(x) if self.input_codec else x[0]

    def _vjp(self, function: Callable[..., jax.Array], weights: Tree, x: Arrays):
        """Differentiates by the weights, and by the input unless it is tokens."""
        if self.input_codec is None:
            return jax.vjp(lambda weights: function(weights, x[0]), weights)
        return jax.vjp(function, weights, self._input(x))

    def _keep(self, weights: Tree, x: Arrays) -> tuple[jax.Array, Tree]:
        y_BLD, vjp = self._vjp(self.functions.apply, weights, x)
        vjp.args_res[0] = None
        return y_BLD, vjp

    def _pull(self, weights: Tree, residuals: Tree, grad_y: Arrays):
        residuals.args_res[0] = weights
        return self._split(residuals(self.output_codec.gradients.decode(grad_y)))

    def _loss_pull(self, weights: Tree, x: Arrays, targets_BL: jax.Array):
        def loss(weights: Tree, x: jax.Array) -> jax.Array:
            return self.functions.loss(weights, x, targets_BL)

        loss_sum, vjp = self._vjp(loss, weights, x)
        return *self._split(vjp(jnp.ones_like(loss_sum))), loss_sum

    def _split(self, gradients: tuple[Tree, ...]) -> tuple[Arrays, Tree]:
        """Encoded gradient of the input, gradient of the weights."""
        if self.input_codec is None:
            return (), gradients[0]
        return self.input_codec.gradients.encode(gradients[1]), gradients[0]


def _add_if_finite(
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


def _find(tree: Tree, path: tuple[str, ...] | None) -> int | None:
    """Which leaf is at ``path``."""
    if path is None:
        return None
    leaves = jax.tree.leaves_with_path(tree)
    return [tuple(key.key for key in keys) for keys, _ in leaves].index(path)
