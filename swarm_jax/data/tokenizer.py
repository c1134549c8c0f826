"""Bytes, or byte-level BPE trained on the training split.

Both read any UTF-8 text without an unknown token, and keep one id that no text gives:
end-of-text, which closes each document.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """Attributes:
    vocab_size: Ids are below it.
    end_of_text: Id that closes a document.
    """

    vocab_size: int
    end_of_text: int

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each UTF-8 text, in any integer dtype."""
        ...

    def serialize(self) -> str:
        """JSON text; equal texts mean equal tokenizers."""
        ...


class ByteTokenizer:
    """A token is a byte of UTF-8; 256 is end-of-text."""

    vocab_size = 257
    end_of_text = 256

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return [np.frombuffer(text, np.uint8) for text in texts]

    def serialize(self) -> str:
        return json.dumps({"type": "bytes", "end_of_text": self.end_of_text})


class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's byte alphabet).

    Args:
        serialized: JSON text of a ``tokenizers.Tokenizer`` made by ``train_bpe``.
    """

    def __init__(self, serialized: str):
        self._serialized = serialized
        self._tokenizer = HuggingFaceTokenizer.from_str(serialized)
        # A document that spells out END_OF_TEXT is still one document.
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.end_of_text = self._tokenizer.token_to_id(END_OF_TEXT)

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast([text.decode() for text in texts])
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def serialize(self) -> str:
        return self._serialized


def train_bpe(texts: Iterable[bytes], vocab_size: int) -> BPETokenizer:
    """Learns merges until the vocabulary is full or no pair occurs twice.

    The result depends on the texts alone, so that every trainer has the same.

    Args:
        texts: UTF-8 texts of the training split.
        vocab_size: 257 or more: end-of-text, 256 bytes, merges.
    """
    tokenizer = HuggingFaceTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator((text.decode() for text in texts), trainer)
    return BPETokenizer(tokenizer.to_str())
