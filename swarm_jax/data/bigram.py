"""Loss of a bigram model: what a language model has to beat.

The model is Witten-Bell interpolation (Witten & Bell 1991) of bigrams with unigrams,
the unigrams smoothed by adding one::

    p(b | a) = (c(a, b) + t(a) p(b)) / (c(a) + t(a)),    p(b) = (c(b) + 1) / (n + V)

c are counts among n training tokens, t(a) is the number of distinct tokens seen after
a. It has nothing to tune, and no easier target than add-one bigrams, which waste their
mass when the vocabulary is large.
"""

import numpy as np

_TOKENS_AT_ONCE = 1 << 20


def bigram_loss(
    train_tokens: np.ndarray, inputs: np.ndarray, targets: np.ndarray, vocab_size: int
) -> float:
    """Cross-entropy of the bigram model in nats per token.

    Args:
        train_tokens: Token ids [num_tokens] to fit the model on.
        inputs: Token ids [...] to predict from.
        targets: Token ids [...] to predict; negative where no loss is taken.
        vocab_size: V; all ids are below it.
    """
    pairs, pair_counts = _count_pairs(train_tokens, vocab_size)
    first_counts = np.zeros(vocab_size)
    np.add.at(first_counts, pairs // vocab_size, pair_counts)
    distinct = np.bincount(pairs // vocab_size, minlength=vocab_size)
    unigram = np.bincount(train_tokens, minlength=vocab_size) + 1.0
    unigram /= unigram.sum()

    taken = targets >= 0
    a, b = inputs[taken].astype(np.int64), targets[taken].astype(np.int64)
    wanted = a * vocab_size + b
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[place] == wanted, pair_counts[place], 0)
    # A token that nothing ever followed has no bigrams: its unigrams stand alone.
    weight = np.maximum(distinct[a], 1)
    probability = (seen + weight * unigram[b]) / (first_counts[a] + weight)
    return float(-np.log(probability).mean())


def _count_pairs(tokens: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted codes ``a * vocab_size + b`` of a stream's pairs, and their counts."""
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for start in range(0, len(tokens) - 1, _TOKENS_AT_ONCE):
        chunk = np.asarray(tokens[start : start + _TOKENS_AT_ONCE + 1], np.int64)
        new, new_counts = np.unique(
            chunk[:-1] * vocab_size + chunk[1:], return_counts=True
        )
        both = np.concatenate([pairs, new])
        pairs, place = np.unique(both, return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, new_counts])).astype(
            np.int64
        )
    return pairs, counts
