"""NNX modules as pure functions. The only file that splits and merges them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from models.config import GPTConfig
from models.numerics import Numerics


@dataclass(frozen=True, slots=True)
class Pure:
    """A module as ``init(key) -> tree`` and ``apply(tree, *inputs) -> y``.

    Trees are nested dicts of arrays.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    apply: Callable[..., jax.Array]

    @classmethod
    def of(cls, module: type, config: GPTConfig, numerics: Numerics) -> "Pure":
        def build(key: jax.Array):
            return module(config, numerics, nnx.Rngs(params=key))

        def init(key: jax.Array) -> dict[str, Any]:
            return nnx.to_pure_dict(nnx.state(build(key)))

        graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(jax.random.key(0))))

        def apply(params: dict[str, Any], *inputs: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params)(*inputs)

        return cls(init, apply)
