"""The bigram loss against its formula, written out with dictionaries."""

import math
from collections import Counter

import numpy as np
import pytest

from swarm_jax.data import bigram


def slow_bigram_loss(train, inputs, targets, vocab_size):
    unigrams, pairs = Counter(train), Counter(zip(train, train[1:], strict=False))
    total = 0.0
    for a, b in zip(inputs, targets, strict=True):
        followers = {y: c for (x, y), c in pairs.items() if x == a}
        weight = max(len(followers), 1)
        uniform = (unigrams[b] + 1) / (len(train) + vocab_size)
        seen = followers.get(b, 0) + weight * uniform
        total -= math.log(seen / (sum(followers.values()) + weight))
    return total / len(inputs)


@pytest.mark.parametrize("tokens_at_once", [7, 1 << 20])
def test_loss_is_the_formula_however_the_tokens_are_cut(tokens_at_once, monkeypatch):
    monkeypatch.setattr(bigram, "_TOKENS_AT_ONCE", tokens_at_once)
    rng = np.random.default_rng(0)
    # Token 9 never occurs in training, 8 only at its very end.
    train = np.append(rng.integers(0, 8, 200), 8).astype(np.uint16)
    inputs = np.append(rng.integers(0, 10, 40), [9, 8]).astype(np.int32)
    targets = np.append(rng.integers(0, 10, 40), [1, 2]).astype(np.int32)
    expected = slow_bigram_loss(train.tolist(), inputs.tolist(), targets.tolist(), 10)
    assert bigram.bigram_loss(train, inputs, targets, 10) == pytest.approx(expected)


def test_probabilities_of_every_context_sum_to_one():
    rng = np.random.default_rng(1)
    train = rng.integers(0, 5, 60)
    for context in range(6):
        losses = [
            bigram.bigram_loss(train, np.array([context]), np.array([b]), 6)
            for b in range(6)
        ]
        assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


def test_targets_without_loss_are_left_out():
    train = np.array([0, 1, 0, 1, 2])
    both = bigram.bigram_loss(train, np.array([[0, 1]]), np.array([[1, -1]]), 3)
    assert both == bigram.bigram_loss(train, np.array([0]), np.array([1]), 3)
