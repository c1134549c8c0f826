"""Ids to text and back, and a BPE that everybody learns alike."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer

from swarm_jax.data.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    VocabularyTokenizer,
    train_bpe,
)

TEXTS = [
    f"def stage_{i}(x):\n    return {i * 7919} + naïve_{i % 9}\n".encode()
    for i in range(60)
]


@pytest.fixture(scope="module")
def bpe() -> VocabularyTokenizer:
    return train_bpe(TEXTS, 300)


def test_a_byte_is_its_own_id():
    assert ByteTokenizer().encode([b"a\xc3\xa9", b""])[0].tolist() == [97, 195, 169]
    assert ByteTokenizer().end_of_text not in range(256)


@settings(deadline=None, derandomize=True)
@given(text=st.text())
def test_bpe_reads_any_text_without_loss(bpe, text):
    [ids] = bpe.encode([text.encode()])
    decoder = HuggingFaceTokenizer.from_str(bpe.serialize())
    assert decoder.decode(ids.tolist(), skip_special_tokens=False) == text


def test_bpe_merges_what_it_was_trained_on(bpe):
    assert bpe.vocab_size == 300
    [ids] = bpe.encode([TEXTS[0]])
    assert len(ids) < len(TEXTS[0]) / 2


def test_text_that_spells_out_the_end_does_not_end_the_document(bpe):
    [ids] = bpe.encode([f"a{END_OF_TEXT}b".encode()])
    assert bpe.end_of_text not in ids


def test_bpe_of_the_same_text_is_the_same_in_every_process(bpe):
    """The hash was taken in other processes; a library that changes it is noticed."""
    assert train_bpe(TEXTS, 300).serialize() == bpe.serialize()
    assert train_bpe(TEXTS[::2], 300).serialize() != bpe.serialize()
    digest = hashlib.sha256(bpe.serialize().encode()).hexdigest()
    assert digest[:16] == "5591e92a5afec7b0"


def test_vocabulary_stays_smaller_when_nothing_is_left_to_merge():
    assert 257 <= train_bpe([b"abc"], 1000).vocab_size < 1000
