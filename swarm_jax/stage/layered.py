"""A stage's state by layer, under names that do not depend on the partition.

The parameters have the top level "embed", "blocks" (stacked over the stage's blocks on
axis 0), "tied", "head", and "compress" and "expand", whose keys tell how many of the
stage's blocks come before; an optimizer's state has subtrees like them. So an array
belongs to the layer that its key path names; what names none, an update count, is
shared by all.

"tied" is a copy of the table in "embed". Where it was not saved, it is read from there.

With delayed updates the parameters before the last update are saved, too, as "before".
Where they were not, those of now take their place.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from swarm_jax.errors import CheckpointError

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
Layers = dict[str, Arrays]

EMBED, BLOCKS, TIED, HEAD = "embed", "blocks", "tied", "head"
TABLE = "embedding"
PARAMS, OPT_STATE, BEFORE = "params", "opt_state", "before"
COMPRESS, EXPAND = "compress", "expand"


class LayeredState:
    """Translates a stage's state to layers by name and back.

    Args:
        state: ``(params, opt_state)``, arrays or ``jax.ShapeDtypeStruct``; a third part
            are the parameters before the last update.
        first_layer: The first of the stage's blocks, counted over the whole model.

    Attributes:
        names: Its layers in order: "embed", "layers.0", ..., "tied", "head";
            "compress.3" and "expand.3" are between "layers.2" and "layers.3".
    """

    def __init__(self, state: Any, first_layer: int):
        leaves = jax.tree.leaves_with_path(state)
        self._places = [_place(path, first_layer) for path, _ in leaves]
        self._dtypes = [leaf.dtype for _, leaf in leaves]
        stacked = {
            leaf.shape[:1]
            for (_, leaf), place in zip(leaves, self._places, strict=True)
            if place.part == BLOCKS
        }
        assert len(stacked) == 1, f"blocks are stacked on axis 0: {stacked}"
        ((num_layers,),) = stacked
        self._blocks = [f"layers.{first_layer + index}" for index in range(num_layers)]
        parts = {place.part for place in self._places} - {None, BLOCKS}
        self.names = tuple(sorted({*parts, *self._blocks}, key=_order))

    def split(self, leaves: Sequence[np.ndarray]) -> tuple[Layers, Arrays]:
        """The state by layer, and what belongs to no layer. Nothing is copied.

        Args:
            leaves: As ``StageCompute.state`` gives them.

        Returns:
            ``(layers, shared)``; arrays have names like "params/output/kernel" and
            "opt_state/0/mu/output/kernel".
        """
        layers: Layers = {name: {} for name in self.names}
        shared: Arrays = {}
        for (part, name), leaf in zip(self._places, leaves, strict=True):
            if part is None:
                shared[name] = leaf
            elif part == BLOCKS:
                for index, layer in enumerate(self._blocks):
                    layers[layer][name] = leaf[index, ...]
            else:
                layers[part][name] = leaf
        return layers, shared

    def join(
        self,
        layers: Mapping[str, Mapping[str, np.ndarray]],
        shared: Mapping[str, np.ndarray],
    ) -> list[np.ndarray]:
        """The inverse of ``split``.

        Raises:
            CheckpointError: An array is not there.
        """

        def leaf(place: _Place) -> np.ndarray:
            if place.part is None:
                return shared[place.name]
            if place.part == BLOCKS:
                return np.stack([layers[layer][place.name] for layer in self._blocks])
            return layers[place.part][place.name]

        try:
            if self._lacks_before(layers):
                places = [place.without_before() for place in self._places]
                found = zip(map(leaf, places), self._dtypes, strict=True)
                return [array.astype(dtype, copy=False) for array, dtype in found]
            return list(map(leaf, self._places))
        except KeyError as missing:
            raise CheckpointError(
                f"the checkpoint lacks {missing}, which this stage has: was it saved "
                "with another version of optax? Restore it with the versions that its "
                "manifest names"
            ) from None

    def _lacks_before(self, layers: Mapping[str, Mapping[str, np.ndarray]]) -> bool:
        """Whether parameters before the last update are needed and were not saved."""
        saved = {name for arrays in layers.values() for name in arrays}
        before = {place.name for place in self._places if place.root == BEFORE}
        if not before or before & saved:
            return False
        logger.warning(
            "the checkpoint was saved without swarm.delayed_updates: the first "
            "gradients from here on are at its own parameters"
        )
        return True


def stored_as(layer: str, saved: Collection[str]) -> str:
    """In which of the layers that were saved this one is found."""
    return EMBED if layer == TIED and TIED not in saved else layer


def tied_layer(embed: Mapping[str, np.ndarray]) -> Arrays:
    """The layer "tied", from the layer "embed"."""
    return {name: a for name, a in embed.items() if name.split("/")[-1] == TABLE}


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a/b": x}`` as ``{"a": {"b": x}}``."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *above, last = name.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


class _Place(NamedTuple):
    """Where a leaf belongs: a layer by name, ``BLOCKS``, or None."""

    part: str | None
    name: str

    @property
    def root(self) -> str:
        return self.name.split("/")[0]

    def without_before(self) -> "_Place":
        """Where it is found if the parameters before the last update are not there."""
        root, *keys = self.name.split("/")
        root = PARAMS if root == BEFORE else root
        return _Place(self.part, "/".join((root, *keys)))


def _place(path: tuple[Any, ...], first_layer: int) -> _Place:
    state, *keys = (jax.tree_util.keystr((key,), simple=True) for key in path)
    root = (PARAMS, OPT_STATE, BEFORE)[int(state)]
    parts = EMBED, BLOCKS, TIED, HEAD, COMPRESS, EXPAND
    at = next((i for i, key in enumerate(keys) if key in parts), None)
    if at is None:
        return _Place(None, "/".join((root, *keys)))
    part, above, below = keys[at], keys[:at], keys[at + 1 :]
    if part in (COMPRESS, EXPAND):
        part = f"{part}.{first_layer + int(below.pop(0))}"
    return _Place(part, "/".join((root, *above, *below)))


def _order(name: str) -> tuple[float, int]:
    """Sorts layers as a microbatch meets them."""
    if name in (EMBED, TIED, HEAD):
        return (-1, 0) if name == EMBED else (float("inf"), name == HEAD)
    kind, number = name.split(".")
    return int(number), (COMPRESS, EXPAND, "layers").index(kind)
