"""Where a stage's arrays are on a peer that has several devices.

One process drives them as a ``jax.sharding.Mesh`` with the axes "data" and "model". The
weights are divided over "model" alone, as the model says. What is kept once for each
parameter and is not multiplied with anything, masters, optimizer state and gradient
sum, is divided over "data" as well (Rajbhandari et al. 2020): a microbatch's gradient
is scattered over "data" as it is summed, and new weights are gathered once a step.

None of it is seen outside: arrays come from numpy and become numpy whole.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from swarm_jax.stage.layered import BLOCKS

DATA, MODEL = "data", "model"

Tree = Any

_ORDER = threading.Lock()


@dataclass(frozen=True, slots=True)
class Layout:
    """Attributes:
    mesh: Axes "data" and "model".
    weights: ``NamedSharding`` of each weight, blocks one by one (``blocks.py``).
    state: The same for what is kept once for each parameter, blocks stacked.
    sums: The same for the gradient sum, blocks one by one.
    to_weights: Brings a tree like the parameters into the order of the weights'
        columns, which the gradient sum has too.
    to_params: Its inverse.
    """

    mesh: Mesh
    weights: Tree
    state: Tree
    sums: Tree
    to_weights: Callable[[Tree], Tree]
    to_params: Callable[[Tree], Tree]

    @property
    def replicated(self) -> NamedSharding:
        """Of scalars."""
        return NamedSharding(self.mesh, P())

    def like(self, tree: Tree) -> Tree:
        """Shardings of ``tree``, which has subtrees like the parameters.

        What is at no parameter's path, such as an update count, is on each device.
        """
        known = dict(jax.tree.leaves_with_path(self.state))

        def find(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
            ends = (path[start:] for start in range(len(path)))
            return next((known[end] for end in ends if end in known), self.replicated)

        return jax.tree.map_with_path(find, tree)

    def spread(self, tree: Tree) -> Tree:
        """Shardings of what travels: by its first axis, that of a microbatch.

        The scales of "dynamic8" have no such axis: they are spread if they divide.
        """

        def sharding(leaf: Any) -> NamedSharding:
            divides = leaf.shape[0] % self.mesh.shape[DATA] == 0
            return NamedSharding(self.mesh, P(DATA) if divides else P())

        return jax.tree.map(sharding, tree)

    def copy(self, tree: Tree) -> Tree:
        """Numpy arrays on the devices; each takes its part of a copy of them."""
        return jax.device_put(jax.tree.map(np.array, tree), self.like(tree))


def make_layout(
    mesh: Mesh,
    shapes: Tree,
    specs: Tree,
    to_weights: Callable[[Tree], Tree],
    to_params: Callable[[Tree], Tree],
) -> Layout:
    """A layout of weights with these specs.

    Args:
        shapes: Of the parameters.
        specs: ``PartitionSpec`` of each weight, blocks stacked.
        to_weights, to_params: As in ``Layout``.
    """

    def sharding(spec: P) -> NamedSharding:
        return NamedSharding(mesh, spec)

    divided = jax.tree.map_with_path(
        lambda path, leaf, spec: sharding(_over_data(mesh, path, leaf.shape, spec)),
        shapes,
        specs,
    )
    weights = _one_by_one(jax.tree.map(sharding, specs), shapes)
    sums = _one_by_one(divided, shapes)
    return Layout(mesh, weights, divided, sums, to_weights, to_params)


def in_order(layout: Layout | None) -> AbstractContextManager:
    """Where programs are launched by a thread that may not be the only one.

    While a peer serves one stage, another thread prepares the next one. If their
    programs reached two devices in different orders, each device would wait for the
    other's part of another sum, for ever.
    """
    return nullcontext() if layout is None else _ORDER


def placed(shapes: Tree, shardings: Tree) -> Tree:
    """Shapes of arrays that are where ``shardings`` says."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        shapes,
        shardings,
    )


def _one_by_one(shardings: Tree, shapes: Tree) -> Tree:
    """Of blocks that are not stacked any more: all on the same devices."""
    block = jax.tree.map(
        lambda stacked: NamedSharding(stacked.mesh, P(*stacked.spec[1:])),
        shardings[BLOCKS],
    )
    count = jax.tree.leaves(shapes[BLOCKS])[0].shape[0]
    return shardings | {BLOCKS: (block,) * count}


def _over_data(mesh: Mesh, path: tuple[Any, ...], shape: tuple[int, ...], spec: P) -> P:
    """``spec`` with "data" on the axis of which a device has most, if it divides.

    Blocks are computed one after the other, so they are not divided among devices.
    """
    ways = mesh.shape[DATA]
    axes = [*spec, *[None] * (len(shape) - len(spec))]
    shares = [
        size // (1 if axis is None else mesh.shape[axis])
        for size, axis in zip(shape, axes, strict=True)
    ]
    first = int(path[0].key == BLOCKS)
    fit = [axis for axis in range(first, len(shape)) if shares[axis] % ways == 0]
    if ways == 1 or not fit:
        return spec
    largest = max(fit, key=lambda axis: shares[axis])
    held = axes[largest]
    axes[largest] = DATA if held is None else (held, DATA)
    return P(*axes)
