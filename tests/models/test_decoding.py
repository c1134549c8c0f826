"""Token by token the model is the one that was trained, in every architecture."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from models.config import GPTConfig
from models.decoding import make_decoder
from models.functional import make_stage
from models.generation import Sampling, draw, generate

LENGTH = 9

PLAIN = GPTConfig(
    num_layers=2,
    model_dim=16,
    num_heads=4,
    ffn_dim=24,
    vocab_size=13,
    sequence_length=LENGTH,
    rope_base=50.0,
)
ARCHITECTURES = {
    "plain": {},
    "grouped queries, gated": {"num_kv_heads": 2, "feed_forward": "swiglu"},
    "learned positions, tied": {
        "positions": "learned",
        "norm": "layer",
        "biases": True,
        "tied_head": True,
    },
    "sinusoidal, factorised, shared": {
        "positions": "sinusoidal",
        "embedding_dim": 8,
        "embedding_norm": True,
        "embedding_scale": 3.0,
        "head": "factorised",
        "head_bias": True,
        "tied_head": True,
        "block_repeats": 3,
    },
    "bottlenecks, padding": {
        "num_layers": 3,
        "boundaries": (1, 2),
        "boundary": "bottleneck",
        "boundary_factor": 4,
        "vocab_multiple": 8,
    },
    "maxout": {"boundaries": (1,), "boundary": "maxout", "boundary_factor": 2},
    "norms": {"boundaries": (1,), "boundary": "norm"},
}


def build(name):
    """Config, jitted logits of the whole model, parameters with no zero, decoder."""
    config = dataclasses.replace(PLAIN, **ARCHITECTURES[name])
    whole = make_stage(config, 0, config.num_layers)
    generator = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: leaf + generator.normal(scale=0.1, size=leaf.shape).astype("f4"),
        whole.init(5),
    )
    return config, jax.jit(whole.logits), params, make_decoder(config)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cached_logits_are_those_of_the_whole_sequence(name):
    """A prompt of four tokens and a padding; then token by token."""
    _, logits, params, decoder = build(name)
    extend = jax.jit(decoder.extend)
    text_BL = np.random.default_rng(0).integers(0, 13, (2, LENGTH), dtype=np.int32)
    expected_BLV = np.asarray(logits(params, text_BL))
    prompt_BT = text_BL[:, :6].copy()
    prompt_BT[:, 4:] = 0
    found_BV, cache = extend(params, decoder.empty(2), prompt_BT, 0, 3)
    for place in range(4, LENGTH + 1):
        np.testing.assert_allclose(
            found_BV, expected_BLV[:, place - 1], rtol=1e-5, atol=1e-5
        )
        if place < LENGTH:
            token_BT = text_BL[:, place : place + 1]
            found_BV, cache = extend(params, cache, token_BT, place, 0)


@pytest.fixture(scope="module")
def model():
    return build("learned positions, tied")


def drawn(model, count, *, prompt, samples, sampling, seed=0, vocab_size=13):
    """Returns tokens_BT."""
    config, _, params, decoder = model
    tokens = generate(
        decoder,
        params,
        prompt,
        samples=samples,
        sequence_length=config.sequence_length,
        vocab_size=vocab_size,
        sampling=sampling,
        seed=seed,
    )
    return np.stack(list(itertools.islice(tokens, count)), axis=1)


@pytest.mark.parametrize("prompt", [[3, 1, 4], list(range(12))])
def test_greedy_text_is_that_of_the_whole_model_also_beyond_its_length(model, prompt):
    _, logits, params, _ = model
    found_BT = drawn(
        model, 14, prompt=prompt, samples=2, sampling=Sampling(temperature=0)
    )
    text = prompt
    for tokens_B in found_BT.T:
        if len(text) > LENGTH:
            text = text[-(LENGTH // 2) :]
        padded_BL = np.zeros((1, LENGTH), np.int32)
        padded_BL[0, : len(text)] = text
        best = int(np.argmax(logits(params, padded_BL)[0, len(text) - 1]))
        assert list(tokens_B) == [best, best]
        text = [*text, best]


def share_of(sampling, logits_V, draws=4000):
    """How often each token was drawn."""
    logits_BV = np.tile(np.asarray(logits_V, np.float32), (draws, 1))
    drawn_B = draw(jax.random.key(1), logits_BV, sampling)
    return np.bincount(drawn_B, minlength=len(logits_V)) / draws


PROBABILITIES = np.array([0.1, 0.5, 0.15, 0.25])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=0), [0, 1, 0, 0]),
        (Sampling(temperature=0.5), PROBABILITIES**2 / sum(PROBABILITIES**2)),
        (Sampling(top_k=2), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(top_k=9), PROBABILITIES),
        (Sampling(top_p=0.5), [0, 1, 0, 0]),
        (Sampling(top_p=0.7), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(top_p=0.8), [0, 5 / 9, 1.5 / 9, 2.5 / 9]),
    ],
)
def test_tokens_are_drawn_as_told(sampling, expected):
    found = share_of(sampling, np.log(PROBABILITIES))
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert not np.any(found[np.asarray(expected) == 0])


def test_samples_differ_and_a_seed_repeats_them(model):
    def text(seed):
        return drawn(model, 7, prompt=[3], samples=3, sampling=Sampling(), seed=seed)

    first_BT = text(seed=1)
    np.testing.assert_array_equal(first_BT, text(seed=1))
    assert np.any(first_BT != text(seed=2))
    assert len({tuple(sample) for sample in first_BT}) > 1
    assert np.all((first_BT >= 0) & (first_BT < 13))


def test_ids_that_the_tokenizer_lacks_are_never_drawn(model):
    hot = Sampling(temperature=100.0)
    prompt = [1]
    assert np.max(drawn(model, 8, prompt=prompt, samples=9, sampling=hot)) > 3
    found = drawn(model, 8, prompt=prompt, samples=9, sampling=hot, vocab_size=4)
    assert np.max(found) == 3


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}]
)
def test_what_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
