"""Text of ids: what a model says."""

from collections.abc import Sequence

from tokenizers import Tokenizer as HuggingFaceTokenizer

from swarm_jax.data.tokenizer import ByteTokenizer, Tokenizer


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text that ids stand for; end-of-text is left out.

    Bytes that are no UTF-8, as half a character at the end, become U+FFFD.
    """
    ids = [int(token) for token in ids if token != tokenizer.end_of_text]
    if isinstance(tokenizer, ByteTokenizer):
        return bytes(ids).decode(errors="replace")
    return HuggingFaceTokenizer.from_str(tokenizer.serialize()).decode(ids)


def until_end(tokenizer: Tokenizer, ids: Sequence[int]) -> Sequence[int]:
    """The ids before the first end-of-text."""
    ends = [i for i, token in enumerate(ids) if token == tokenizer.end_of_text]
    return ids[: ends[0]] if ends else ids
