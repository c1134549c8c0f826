"""Bytes, byte-level BPE trained on the training split, or a ready-made vocabulary.

The first two, and GPT-2's, read any UTF-8 text without an unknown token. Each keeps one
id that no text gives: end-of-text, which closes each document.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from swarm_jax.errors import ConfigError

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


class VocabularyTokenizer:
    """What a ``tokenizers.Tokenizer`` makes of a text, and nothing put before or after.

    Args:
        serialized: JSON text of a ``tokenizers.Tokenizer``.
        end_of_text: The token that closes a document.

    Raises:
        ConfigError: The vocabulary has no such token.
    """

    def __init__(self, serialized: str, end_of_text: str = END_OF_TEXT):
        self._serialized = serialized
        self._tokenizer = HuggingFaceTokenizer.from_str(serialized)
        # A document that spells out END_OF_TEXT is still one document.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # There may be holes, so that the number of tokens is not enough.
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        end = self._tokenizer.token_to_id(end_of_text)
        if end is None:
            raise ConfigError(
                f"data.end_of_text={end_of_text!r} is no token of the vocabulary "
                f"(data.tokenizer_path) of {self.vocab_size}. Name the one that closes "
                "a document there, for example '</s>' or '<|end_of_text|>'"
            )
        self.end_of_text = end

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(
            [text.decode() for text in texts], add_special_tokens=False
        )
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def serialize(self) -> str:
        return self._serialized


class VocabularyFiles:
    """A ready-made vocabulary: tokenizer.json, or GPT-2's vocab.json and merges.txt.

    Args:
        path: One of the files, or the folder that they lie in.

    Raises:
        ConfigError: They are not there.
    """

    def __init__(self, path: str):
        given = Path(path).expanduser()
        folder = given if given.is_dir() else given.parent
        pair = [folder / "vocab.json", folder / "merges.txt"]
        whole = folder / "tokenizer.json" if given.is_dir() else given
        if whole.is_file() and whole not in pair:
            self._files = [whole]
        elif given in (folder, *pair) and all(file.is_file() for file in pair):
            self._files = pair
        else:
            raise ConfigError(
                f"data.tokenizer_path={path!r}: there is neither a tokenizer.json nor "
                "both a vocab.json and a merges.txt. GPT-2's come with its weights: "
                "copy them to this machine, and name their folder"
            )

    def digest(self) -> str:
        """SHA-256 of the files."""
        parts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in self._files]
        return " ".join(parts)

    def load(self, end_of_text: str) -> VocabularyTokenizer:
        """Raises:
        ConfigError: The files hold no tokenizer, or not this token.
        """
        try:
            if len(self._files) == 1:
                tokenizer = HuggingFaceTokenizer.from_file(str(self._files[0]))
            else:
                tokenizer = _byte_level(models.BPE.from_file(*map(str, self._files)))
        # The library, in Rust, raises nothing more precise.
        except Exception as error:
            names = " and ".join(map(str, self._files))
            raise ConfigError(
                f"data.tokenizer_path: cannot read a tokenizer from {names}: {error}"
            ) from error
        return VocabularyTokenizer(tokenizer.to_str(), end_of_text)


def train_bpe(texts: Iterable[bytes], vocab_size: int) -> VocabularyTokenizer:
    """Learns merges until the vocabulary is full or no pair occurs twice.

    This is byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's byte alphabet).

    The result depends on the texts alone, so that every trainer has the same.

    Args:
        texts: UTF-8 texts of the training split.
        vocab_size: 257 or more: end-of-text, 256 bytes, merges.
    """
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator((text.decode() for text in texts), trainer)
    return VocabularyTokenizer(tokenizer.to_str())


def _byte_level(model: models.BPE) -> HuggingFaceTokenizer:
    """GPT-2's way: its expression splits text into words, merges work within one."""
    tokenizer = HuggingFaceTokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
