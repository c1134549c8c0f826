"""The model one token after another: keys and values of earlier tokens are kept.

The modules are those that are trained; here they are told where in the sequence their
input stands. Shapes are static, so that two programs do for a text: one for its prompt,
one for each further token.

Shape suffixes: B samples, T new tokens, M positions of the whole sequence, N blocks, R
repeats of a block, D model, H heads, K head size, G query heads of one key head, V
vocabulary.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.boundary import Compress, Expand
from models.config import GPTConfig
from models.functional import Params, boundaries_of
from models.gpt import Block, Embedding, Head
from models.numerics import make_numerics
from models.pure import Pure


class Cache(NamedTuple):
    """Keys and values of each application of each block, in the compute dtype."""

    k_NRBMHK: jax.Array
    v_NRBMHK: jax.Array


@dataclass(frozen=True, slots=True)
class Decoder:
    """The whole model, token by token. Both functions are to be jitted by the caller.

    Attributes:
        empty: ``empty(B)``: the cache of B samples with no token yet.
        extend: ``extend(params, cache, tokens_BT, start, last) -> (logits_BV, cache)``
            takes T tokens at positions ``start`` to ``start + T - 1``, which must be
            inside the sequence length; positions before must be in the cache, and
            later ones are forgotten. The logits are those after token ``last`` of the
            T, in the parameter dtype: what follows it may be padding.
    """

    empty: Callable[[int], Cache]
    extend: Callable[..., tuple[jax.Array, Cache]]


def make_decoder(config: GPTConfig) -> Decoder:
    """Builds the decoder of a model of any architecture.

    Parameters are those of the whole model as one stage; masters or what
    ``functional.cast_params`` made of them.

    Raises:
        ValueError: float64 is asked for while jax's 64-bit mode is off.
    """
    numerics = make_numerics(config)
    embed, block, head, compress, expand = (
        Pure.of(module, config, numerics)
        for module in (Embedding, _CachedBlock, Head, Compress, Expand)
    )
    compressed, expanded = boundaries_of(config, 0, config.num_layers)

    def empty(batch: int) -> Cache:
        applications = config.num_layers, config.block_repeats
        heads = config.kv_heads, config.head_dim
        shape = (*applications, batch, config.sequence_length, *heads)
        return Cache(*(jnp.zeros(shape, numerics.compute) for _ in Cache._fields))

    def extend(params: Params, cache: Cache, tokens_BT, start, last):
        x_BTD = embed.apply(params["embed"], tokens_BT, start)
        x_BTD = x_BTD.astype(numerics.compute)
        extended = []
        for first, stop in itertools.pairwise((0, *compressed, config.num_layers)):
            if first in expanded:
                x_BTD = expand.apply(params["expand"][str(first)], x_BTD)
            segment = jax.tree.map(
                lambda leaf, first=first, stop=stop: leaf[first:stop],
                (params["blocks"], cache),
            )
            x_BTD, kept = jax.lax.scan(run_block(start), x_BTD, segment)
            extended.append(kept)
            if stop in compressed:
                x_BTD = compress.apply(params["compress"][str(stop)], x_BTD)
        cache = jax.tree.map(lambda *kept: jnp.concatenate(kept), *extended)
        x_BTD = jax.lax.dynamic_slice_in_dim(x_BTD, last, 1, axis=1)
        table = [params["embed"]["embedding"]] if config.tied_head else []
        return head.apply(params["head"], x_BTD, *table)[:, 0], cache

    def run_block(start: jax.Array):
        def applied(x_BTD: jax.Array, layer_and_cache):
            layer, cache = layer_and_cache
            return jax.lax.scan(
                lambda x_BTD, kept: block.apply(layer, x_BTD, kept, start), x_BTD, cache
            )

        return applied

    return Decoder(empty, extend)


class _CachedBlock(Block):
    """A block whose attention also sees what is in a cache."""

    def __call__(self, x_BTD: jax.Array, cache: tuple, start: jax.Array):
        """Returns x_BTD and the cache with the new keys and values."""
        q_BTHK, *new = self.attention.heads(self.attention_norm(x_BTD), start)
        k_BMHK, v_BMHK = (
            jax.lax.dynamic_update_slice_in_dim(kept, added, start, axis=1)
            for kept, added in zip(cache, new, strict=True)
        )
        dtype = self.attention.numerics.parameter
        mixed_BTHK = attend_from(start, q_BTHK, k_BMHK, v_BMHK, dtype)
        x_BTD += self.attention.output(mixed_BTHK.reshape(x_BTD.shape))
        x_BTD += self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD, Cache(k_BMHK, v_BMHK)


def attend_from(
    start: jax.Array, q_BTHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, dtype
) -> jax.Array:
    """Attention of the queries at ``start`` and after to all keys up to their own.

    Args:
        dtype: Of scores and softmax.
    """
    new, places, heads = q_BTHK.shape[1], *k_BMHK.shape[1:3]
    q_BTHGK = q_BTHK.reshape(*q_BTHK.shape[:2], heads, -1, q_BTHK.shape[3])
    scores_BHGTM = jnp.einsum(
        "bthgk,bmhk->bhgtm", q_BTHGK, k_BMHK, preferred_element_type=dtype
    )
    seen_TM = jnp.arange(places)[None] <= start + jnp.arange(new)[:, None]
    scores_BHGTM = jnp.where(
        seen_TM[None, None, None], scores_BHGTM / math.sqrt(q_BTHK.shape[3]), -jnp.inf
    )
    weights_BHGTM = jax.nn.softmax(scores_BHGTM).astype(v_BMHK.dtype)
    mixed_BTHGK = jnp.einsum("bhgtm,bmhk->bthgk", weights_BHGTM, v_BMHK)
    return mixed_BTHGK.reshape(q_BTHK.shape)
