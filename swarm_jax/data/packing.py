"""Sequences of L tokens, cut from a stream of documents or packed from whole ones.

Stream: windows of L + 1 tokens over all documents, one after the other. They overlap by
the one token that is the last target of one and the first input of the next; every
target carries loss.

Documents: a sequence holds whole documents, each closed by its end-of-text. Documents
longer than L are cut into pieces of L, and what is left of them is packed like short
ones. Every token of the corpus is an input once and its target is what follows it in
its document; nothing is to be predicted from an end-of-text, nor from the padding at a
sequence's end: those targets are negative. Which documents share a sequence is decided
by best fit, longest first (Johnson 1973, the packing of Ding et al. 2024), within
portions of the corpus, and kept in the cache.
"""

# Shape suffixes: N sequences, L sequence.

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from swarm_jax.data.cache import Split
from swarm_jax.data.entries import NewEntry, open_entry

FORMAT = 1
"""Part of every key: raise it when the same tokens would be packed in another way."""

IGNORED = -1
"""A target that carries no loss."""

_DOCUMENTS_AT_ONCE = 1 << 14


class Sequences(Protocol):
    """All sequences of a split, by number."""

    def __len__(self) -> int: ...

    def rows(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """int32 inputs_NL and targets_NL; targets without loss are negative."""
        ...

    def loss_tokens(self, numbers: Sequence[int]) -> int:
        """How many targets of these rows carry loss, without reading them."""
        ...


def open_sequences(split: Split, packing: str, sequence_length: int) -> Sequences:
    """Args:
    packing: "stream" or "documents".
    """
    if packing == "stream":
        return Windows(split.tokens, sequence_length)
    return Packed(split, sequence_length)


class Windows:
    """Windows of L inputs and their L targets; what is left at the end is left.

    Args:
        tokens: Token ids [num_tokens].
        sequence_length: L.
    """

    def __init__(self, tokens: np.ndarray, sequence_length: int):
        self._tokens = tokens
        self._length = sequence_length

    def __len__(self) -> int:
        return max(0, len(self._tokens) - 1) // self._length

    def rows(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        inputs_NL = np.empty((len(numbers), self._length), np.int32)
        targets_NL = np.empty_like(inputs_NL)
        for row, number in enumerate(numbers):
            start = int(number) * self._length
            window = self._tokens[start : start + self._length + 1]
            inputs_NL[row], targets_NL[row] = window[:-1], window[1:]
        return inputs_NL, targets_NL

    def loss_tokens(self, numbers: Sequence[int]) -> int:
        return len(numbers) * self._length


class Packed:
    """Sequences of whole documents, as far as they fit.

    Args:
        split: Tokens and where documents end in them.
        sequence_length: L.
    """

    def __init__(self, split: Split, sequence_length: int):
        name = f"{split.path.name}-packed{FORMAT}-{sequence_length}"
        entry = open_entry(
            split.path.with_name(name),
            lambda new: _pack(new, split.ends, sequence_length),
        )
        self._split = split
        self._length = sequence_length
        self._starts = entry.arrays["piece_starts"]
        self._lengths = entry.arrays["piece_lengths"]
        self._ends = entry.arrays["sequence_ends"]
        self._loss_tokens = entry.arrays["loss_tokens"]

    def __len__(self) -> int:
        return len(self._ends)

    def rows(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        tokens, end_of_text = self._split.tokens, self._split.end_of_text
        inputs_NL = np.full((len(numbers), self._length), end_of_text, np.int32)
        targets_NL = np.full_like(inputs_NL, IGNORED)
        for row, number in enumerate(map(int, numbers)):
            at = 0
            first = int(self._ends[number - 1]) if number else 0
            for piece in range(first, int(self._ends[number])):
                start, length = int(self._starts[piece]), int(self._lengths[piece])
                found = tokens[start : start + length + 1]
                inputs_NL[row, at : at + length] = found[:length]
                targets_NL[row, at : at + len(found) - 1] = found[1:]
                at += length
        targets_NL[inputs_NL == end_of_text] = IGNORED
        return inputs_NL, targets_NL

    def loss_tokens(self, numbers: Sequence[int]) -> int:
        return int(self._loss_tokens[np.asarray(numbers, np.int64)].sum(dtype=np.int64))


def _pack(new: NewEntry, ends: np.ndarray, length: int) -> dict[str, Any]:
    """Writes which pieces of which documents make up each sequence."""
    pieces = 0
    for first in range(0, len(ends), _DOCUMENTS_AT_ONCE):
        portion = np.asarray(ends[first : first + _DOCUMENTS_AT_ONCE], np.int64)
        begin = int(ends[first - 1]) if first else 0
        starts, lengths, is_end = _cut(portion, begin, length)
        order, counts = _fill_sequences(lengths, length)
        group_ends = np.cumsum(counts)
        loss = np.add.reduceat(
            (lengths - is_end)[order], group_ends - counts, dtype=np.int64
        )
        new.append("piece_starts", starts[order].astype("<u8"))
        new.append("piece_lengths", lengths[order].astype("<u4"))
        new.append("sequence_ends", (pieces + group_ends).astype("<u8"))
        new.append("loss_tokens", loss.astype("<u4"))
        pieces += len(order)
    return {}


def _cut(
    ends: np.ndarray, begin: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces of documents: where each starts, its tokens, whether it ends a document.

    A piece that is nothing but end-of-text has nothing to learn from, and is left out:
    with the token before it, it has been a target.

    Args:
        ends: Of consecutive documents.
        begin: Where the first of them begins.
        length: Tokens of the longest piece.
    """
    document_starts = np.concatenate([[begin], ends[:-1]])
    sizes = ends - document_starts
    counts = -(-sizes // length)
    before = np.cumsum(counts) - counts
    number = np.arange(counts.sum()) - np.repeat(before, counts)
    starts = np.repeat(document_starts, counts) + number * length
    stops = np.minimum(starts + length, np.repeat(ends, counts))
    is_end = stops == np.repeat(ends, counts)
    kept = ~(is_end & (stops - starts == 1))
    return starts[kept], (stops - starts)[kept], is_end[kept]


def _fill_sequences(
    lengths: np.ndarray, capacity: int
) -> tuple[np.ndarray, np.ndarray]:
    """Best fit, longest first.

    Returns:
        The pieces, sequence by sequence, and how many each of these has.
    """
    sequences: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # Bit r is set if there is a sequence with room for r tokens.
    order = np.argsort(-lengths, kind="stable").tolist()
    sizes = lengths.tolist()
    for piece in order:
        size = sizes[piece]
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
            sequences[number].append(piece)
        else:
            room, number = capacity, len(sequences)
            sequences.append([piece])
        if left := room - size:
            by_room[left].append(number)
            rooms |= 1 << left
    members = np.array([piece for each in sequences for piece in each], np.int64)
    return members, np.array([len(each) for each in sequences], np.int64)
