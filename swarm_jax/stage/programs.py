"""The jitted programs of one stage.

Parameters exist twice when the compute dtype differs: masters, which the optimizer
changes, and *weights*, their cast copy, made once per step, with blocks one by one
(``blocks.py``). Gradients are taken with respect to the weights and summed in the
masters' dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from swarm_jax.stage.blocks import stack, unstack
from swarm_jax.stage.codec import BoundaryCodec, Specs, shapes_of
from swarm_jax.stage.layout import Layout
from swarm_jax.stage.optimizer import clip_by_given_norm, squared_norm
from swarm_jax.stage.passes import Passes, StageFunctions, add_if_finite

Tree = Any


@dataclass(frozen=True, slots=True)
class StagePrograms:
    """Jitted functions of plain pytrees; arrays at their edges are encoded.

    Every ``finite`` is a bool scalar over all that the program hands on. Programs that
    return a sum were given it (donated): the caller's is gone.

    Attributes:
        input_specs: dtype name and shape of each array in ``x``.
        gradient_specs: The same for ``grad_y``; empty on the last stage.
        targets_spec: The same for the last stage's targets.
        layout: Where arrays are on a peer with several devices; None: there is one.
        tied_leaf: Which leaf of the gradient is that of a parameter that another stage
            has a copy of; None if there is none.
        cast: ``(params) -> weights``; gives ``params`` itself where no dtype differs
            and there is one device.
        init_optimizer: ``(params) -> opt_state``.
        to_params: ``(tree) -> tree``: one like the weights to one like the parameters;
            not jitted, and on one device numpy arrays stay on the host.
        zeros: ``() -> gradient_sum``, a tree like the weights.
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
        add: ``(sum, tree) -> (finite, sum)``; the sum is as it was unless finite. The
            tree is like the parameters.
        scale: ``(sum, scale, tied_scale) -> tree`` like the parameters: the tied leaf
            by its own.
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
    layout: Layout | None
    tied_leaf: int | None
    cast: Callable[..., Any]
    to_params: Callable[[Tree], Tree]
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
    layout: Layout | None = None,
) -> StagePrograms:
    """Builds the programs; nothing is compiled before its first call.

    Args:
        cast: ``cast(params) -> weights`` in the compute dtype.
        input_codec: Of the boundary before the stage; None for the first one.
        output_codec: Of the boundary after it; None for the last one.
        tokens_shape: (B, L).
        clip_norm: Gradients longer than this are scaled down; None for no clipping.
        layout: Where arrays are on several devices, for which ``functions`` were made.
    """
    shapes = jax.eval_shape(lambda: functions.init(0))
    is_cast = layout is not None or jax.eval_shape(cast, shapes) != shapes
    tokens_spec = ("int32", tuple(tokens_shape))
    assert (input_codec is None) == functions.is_first, input_codec
    assert (output_codec is None) == functions.is_last, output_codec
    passes = Passes(functions, input_codec, output_codec, layout)
    tied_leaf = _find(shapes, functions.tied)
    uncounted = tied_leaf if functions.is_last else None

    def to_weights(tree):
        if layout is not None:
            tree = layout.to_weights(tree)
        return unstack(tree) if is_cast else tree

    def to_params(tree):
        tree = stack(tree) if is_cast else tree
        return tree if layout is None else layout.to_params(tree)

    def zeros():
        sums = jax.eval_shape(to_weights, shapes)
        return jax.tree.map(jnp.zeros_like, sums)

    def as_weights(params):
        return to_weights(cast(params))

    def scale(total, scale, tied_scale):
        leaves, structure = jax.tree.flatten(to_params(total))
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
        weights = as_weights(params) if is_cast else None
        return params, opt_state, weights, jnp.isfinite(gradient_norm)

    def add(total, tree):
        return add_if_finite(total, to_weights(tree), ())

    pins = {}
    if layout is not None:
        opt_state = jax.eval_shape(optimizer.init, shapes)
        pins = _pins(layout, opt_state, input_codec, output_codec)

    def jit(function, *results, donate=()):
        """On several devices, results are where their names say; None: anywhere."""
        pinned = {}
        if pins:
            places = tuple(result and pins[result] for result in results)
            pinned["out_shardings"] = places if len(places) > 1 else places[0]
        return jax.jit(function, donate_argnums=donate, **pinned)

    jitted_update = jit(
        update, "state", "opt_state", "weights", "scalar", donate=(0, 1)
    )

    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def update_sharing(*args):
        params, opt_state, weights, done = jitted_update(*args)
        return params, opt_state, weights if is_cast else params, done

    adding = "grad_x", "scalar", "sum"
    return StagePrograms(
        input_specs=input_codec.activations.specs if input_codec else (tokens_spec,),
        gradient_specs=output_codec.gradients.specs if output_codec else (),
        targets_spec=tokens_spec,
        layout=layout,
        tied_leaf=tied_leaf,
        cast=jit(as_weights, "weights") if is_cast else lambda params: params,
        to_params=to_params,
        init_optimizer=jit(optimizer.init, "opt_state"),
        zeros=jit(zeros, "sum"),
        forward=jit(passes.forward, "y", "scalar"),
        forward_keeping=jit(passes.forward_keeping, "y", None, "scalar"),
        backward=jit(passes.backward, "grad_x", "scalar"),
        backward_adding=jit(passes.backward_adding, *adding, donate=3),
        recompute_backward=jit(passes.recompute_backward, "grad_x", "scalar"),
        recompute_backward_adding=jit(
            passes.recompute_backward_adding, *adding, donate=3
        ),
        loss=jit(passes.loss, "scalar"),
        loss_backward=jit(passes.loss_backward, "grad_x", "scalar", "scalar"),
        loss_backward_adding=jit(
            passes.loss_backward_adding, "grad_x", "scalar", *adding[1:], donate=3
        ),
        add=jit(add, "scalar", "sum", donate=0),
        scale=jit(scale, "state"),
        squared_norm=jit(counted_norm, "scalar"),
        update=update_sharing,
        update_program=jitted_update,
        apart=(lambda params: params) if is_cast else copy,
        copy=copy,
    )


def _pins(
    layout: Layout, opt_state: Tree, input_codec: Any, output_codec: Any
) -> dict[str, Tree]:
    """Shardings of what programs return, by the names that ``StagePrograms`` has."""
    y = output_codec.activations.specs if output_codec else ()
    grad_x = input_codec.gradients.specs if input_codec else ()
    return {
        "y": layout.spread(shapes_of(y)),
        "grad_x": layout.spread(shapes_of(grad_x)),
        "state": layout.state,
        "sum": layout.sums,
        "opt_state": layout.like(opt_state),
        "weights": layout.weights,
        "scalar": layout.replicated,
    }


def _find(tree: Tree, path: tuple[str, ...] | None) -> int | None:
    """Which leaf is at ``path``."""
    if path is None:
        return None
    leaves = jax.tree.leaves_with_path(tree)
    return [tuple(key.key for key in keys) for keys, _ in leaves].index(path)
