"""A run over some of the stacked blocks that keeps no copy of their parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run_rows(
    run: Callable[[Any, jax.Array], jax.Array],
    rows: tuple[int, int],
    stacked: Any,
    x: jax.Array,
) -> jax.Array:
    """``run`` on rows ``rows[0]`` to ``rows[1] - 1`` of the leaves of ``stacked``.

    Its own derivative, because jax's keeps the rows for the backward pass, anew for
    every microbatch: all parameters of a stage. Here they are cut out once more.
    """
    return run(_cut(stacked, rows), x)


def _forward(run, rows, stacked, x):
    y, vjp = jax.vjp(run, _cut(stacked, rows), x)
    vjp.args_res[0] = None
    return y, (vjp, stacked)


def _backward(run, rows, kept, grad_y):
    vjp, stacked = kept
    cut = partial(_cut, rows=rows)
    vjp.args_res[0] = cut(stacked)
    grad_rows, grad_x = vjp(grad_y)
    (grad_stacked,) = jax.linear_transpose(cut, stacked)(grad_rows)
    return grad_stacked, grad_x


run_rows.defvjp(_forward, _backward)


def _cut(stacked: Any, rows: tuple[int, int]) -> Any:
    return jax.tree.map(lambda leaf: leaf[slice(*rows)], stacked)
