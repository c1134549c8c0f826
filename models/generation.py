"""Text from a decoder: which token comes next, and the loop around it.

Shape suffixes: B samples, T tokens of the prompt, V vocabulary.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding import Decoder
from models.functional import Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: Logits are divided by it; 0: the most likely token.
        top_k: Only the k most likely tokens; None: all of them.
        top_p: Only the fewest most likely tokens that have this probability together
            (nucleus sampling, Holtzman et al. 2020).

    Raises:
        ValueError: A value that cannot work.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature}: use 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k}: use 1 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: use a number above 0, up to 1")


def draw(key: jax.Array, logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns tokens_B, int32."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # Descending, so that what is kept is a beginning of each row.
    order_BV = jnp.argsort(-logits_BV, axis=-1)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    sorted_BV = sorted_BV / sampling.temperature
    likely_BV = jax.nn.softmax(sorted_BV)
    before_BV = jnp.cumsum(likely_BV, axis=-1) - likely_BV
    ranks_V = jnp.arange(logits_BV.shape[-1])
    kept_V = ranks_V < (sampling.top_k or len(ranks_V))
    kept_BV = (before_BV < sampling.top_p) & kept_V[None]
    choice_B = jax.random.categorical(key, jnp.where(kept_BV, sorted_BV, -jnp.inf))
    return jnp.take_along_axis(order_BV, choice_B[:, None], axis=-1)[:, 0].astype(
        jnp.int32
    )


def generate(
    decoder: Decoder,
    params: Params,
    prompt_T: Sequence[int],
    *,
    samples: int,
    sequence_length: int,
    vocab_size: int,
    sampling: Sampling,
    seed: int,
) -> Iterator[np.ndarray]:
    """Draws token after token, without an end.

    When the sequence is full, it goes on from the last half of it: the model has no
    positions beyond.

    Args:
        prompt_T: One token or more; of a longer one than the sequence length, the last
            half of a sequence counts.
        sequence_length: Of the decoder's model.
        vocab_size: Of the tokenizer; what is not below it is never drawn.

    Yields:
        tokens_B, one for each sample.
    """
    assert len(prompt_T) > 0, "there is nothing to go on from"

    @partial(jax.jit, donate_argnames="cache")
    def extend(params, cache, tokens_BT, start, last, key):
        logits_BV, cache = decoder.extend(params, cache, tokens_BT, start, last)
        return draw(key, logits_BV[:, :vocab_size], sampling), cache

    root = jax.random.key(seed)
    text_BT = np.tile(np.asarray(prompt_T, np.int32), (samples, 1))
    cache, filled = decoder.empty(samples), sequence_length
    for number in itertools.count():
        if filled == sequence_length:
            if text_BT.shape[1] > sequence_length:
                text_BT = text_BT[:, -max(1, sequence_length // 2) :]
            start, filled = 0, text_BT.shape[1]
            new_BT = _padded(text_BT, sequence_length)
        else:
            start, filled = filled, filled + 1
            new_BT = text_BT[:, -1:]
        key = jax.random.fold_in(root, number)
        last = filled - 1 - start
        drawn_B, cache = extend(params, cache, new_BT, start, last, key)
        tokens_B = np.asarray(drawn_B)
        yield tokens_B
        text_BT = np.concatenate([text_BT, tokens_B[:, None]], axis=1)


def _padded(tokens_BT: np.ndarray, sequence_length: int) -> np.ndarray:
    """Behind them zeros up to a power of two, so that few lengths are compiled."""
    length = min(1 << (tokens_BT.shape[1] - 1).bit_length(), sequence_length)
    return np.pad(tokens_BT, ((0, 0), (0, length - tokens_BT.shape[1])))
