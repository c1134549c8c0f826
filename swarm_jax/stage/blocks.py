"""A stage's blocks, stacked or one by one.

Parameters are stacked on axis 0, ``{"blocks": {name: [n, ...]}}``: few large arrays to
update, reduce and save. Weights that are arrays of their own, and the gradient sum
beside them, are ``{"blocks": (block, block, ...)}``: a program then reads each block's
weights, writes its gradient and keeps its residuals where they are. A loop over stacked
ones copies them out of the stack and into it for every microbatch.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swarm_jax.stage.layered import BLOCKS

Tree = dict[str, Any]


def unstack(params: Tree) -> Tree:
    """A tree like the parameters with its blocks one by one."""
    blocks = params[BLOCKS]
    count = len(jax.tree.leaves(blocks)[0])
    return params | {
        BLOCKS: tuple(
            jax.tree.map(lambda leaf, index=index: leaf[index], blocks)
            for index in range(count)
        )
    }


def stack(weights: Tree) -> Tree:
    """The inverse of ``unstack``; numpy arrays stay on the host."""
    return weights | {BLOCKS: jax.tree.map(_stack, *weights[BLOCKS])}


def _stack(*leaves: Any) -> Any:
    host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    return np.stack(leaves) if host else jnp.stack(leaves)
