"""Ready-made vocabularies: GPT-2's files give GPT-2's ids."""

import json
import re

import pytest
from tokenizers import Tokenizer, pre_tokenizers, processors

from swarm_jax.data.cache import cached_tokens
from swarm_jax.data.dataset import open_dataset
from swarm_jax.data.tokenizer import END_OF_TEXT, VocabularyFiles, train_bpe
from swarm_jax.errors import ConfigError

MERGES = [
    *("h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld"),
    *("i n", "in g", "' s", "Ġ Ġ", "1 2", "Ġ a", "Ġa n", "Ġan d", "Ċ Ċ"),
]
GPT2_WORDS = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
)
"""OpenAI's expression, for ASCII."""


def byte_alphabet() -> dict[int, str]:
    """``bytes_to_unicode`` of OpenAI's encoder.py (MIT license)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    letters = [*shown, *(256 + n for n in range(len(others)))]
    return dict(zip([*shown, *others], map(chr, letters), strict=True))


def vocabulary() -> dict[str, int]:
    merged = [pair.replace(" ", "") for pair in MERGES]
    tokens = [*byte_alphabet().values(), *merged, END_OF_TEXT]
    return {token: number for number, token in enumerate(tokens)}


def gpt2_encode(text: str) -> list[int]:
    """GPT-2's algorithm as published: always merge the pair that was learnt first."""
    ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(MERGES)}
    letters, ids = byte_alphabet(), vocabulary()
    found = []
    for word in GPT2_WORDS.findall(text):
        parts = [letters[byte] for byte in word.encode()]
        while pairs := [pair for pair in zip(parts, parts[1:]) if pair in ranks]:  # noqa: B905
            first = min(pairs, key=ranks.__getitem__)
            merged, rest = [], parts
            while rest:
                size = 2 if tuple(rest[:2]) == first else 1
                merged.append("".join(rest[:size]))
                rest = rest[size:]
            parts = merged
        found += [ids[part] for part in parts]
    return found


@pytest.fixture
def gpt2_folder(tmp_path):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return folder


TEXTS = [
    "hello world, hello  worlds\n\n it's 12 and 1234 things'll do",
    "   leading and trailing   ",
    f"a{END_OF_TEXT}b",
    "tabs\tand\r\nlines and - punctuation!!? (hello)",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_gpt2(text, gpt2_folder):
    tokenizer = VocabularyFiles(str(gpt2_folder)).load(END_OF_TEXT)
    [ids] = tokenizer.encode([text.encode()])
    assert ids.tolist() == gpt2_encode(text)
    assert tokenizer.end_of_text == len(MERGES) + 256 == tokenizer.vocab_size - 1


def test_the_reference_merges(gpt2_folder):
    ids = vocabulary()
    assert gpt2_encode("hello world") == [ids["hello"], ids["Ġworld"]]


@pytest.mark.parametrize("name", ["", "vocab.json", "merges.txt"])
def test_the_pair_is_found_by_folder_and_by_either_file(name, gpt2_folder):
    files = VocabularyFiles(str(gpt2_folder / name))
    assert files.digest() == VocabularyFiles(str(gpt2_folder)).digest()


def test_a_tokenizer_file_gives_ids_without_frame_and_limit(gpt2_folder):
    """As Llama's: a token before each text, another end, a limit, holes in the ids."""
    tokenizer = Tokenizer.from_str(train_bpe([b"hello world"] * 9, 270).serialize())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding()
    path = gpt2_folder / "tokenizer.json"
    tokenizer.save(str(path))
    for given in (path, gpt2_folder):
        made = VocabularyFiles(str(given)).load("</s>")
        ids, short = made.encode([b"hello world hello </s>", b"a"])
        assert len(ids) > 3 and len(short) == 1
        assert made.end_of_text == tokenizer.token_to_id("</s>") not in ids.tolist()
        assert made.vocab_size == tokenizer.get_vocab_size()


def test_holes_in_the_ids_count_as_vocabulary(gpt2_folder):
    ids = vocabulary() | {END_OF_TEXT: 5000}
    (gpt2_folder / "vocab.json").write_text(json.dumps(ids))
    assert VocabularyFiles(str(gpt2_folder)).load(END_OF_TEXT).vocab_size == 5001


def test_the_digest_names_the_files_and_the_end(make_config, gpt2_folder, cache_dir):
    settings = {"tokenizer": "gpt2", "tokenizer_path": str(gpt2_folder)}
    digests = [cached_tokens(make_config(**settings).data, cache_dir).digest]
    other = make_config(**settings, end_of_text="hello").data
    digests.append(cached_tokens(other, cache_dir).digest)
    merges = gpt2_folder / "merges.txt"
    merges.write_text("\n".join(["#version: 0.2", *MERGES[:-1], ""]))
    digests.append(cached_tokens(make_config(**settings).data, cache_dir).digest)
    merges.write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    assert cached_tokens(make_config(**settings).data, cache_dir).digest == digests[0]
    assert len(set(digests)) == 3


def test_a_model_too_small_for_the_vocabulary_is_told_its_size(
    make_config, gpt2_folder, cache_dir
):
    config = make_config(tokenizer="gpt2", tokenizer_path=str(gpt2_folder))
    config.model.vocab_size = 274
    with pytest.raises(ConfigError, match="vocab_size=274 is too small.*use 275"):
        open_dataset(config, cache_dir)
    config.model.vocab_size = 275
    assert open_dataset(config, cache_dir).vocab_size == 275


def test_an_end_that_text_can_give_is_refused(make_config, gpt2_folder, cache_dir):
    config = make_config(
        tokenizer="gpt2", tokenizer_path=str(gpt2_folder), end_of_text="s"
    )
    with pytest.raises(ConfigError, match="text of .*txt gives token .*special"):
        open_dataset(config, cache_dir)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "merges.txt").unlink(), "neither a tokenizer.json nor both"),
        (lambda f: (f / "merges.txt").write_text("no-pair\n"), "cannot read .*merges"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot read .*er.json"),
    ],
)
def test_files_that_are_missing_or_broken_are_named(damage, message, gpt2_folder):
    damage(gpt2_folder)
    with pytest.raises(ConfigError, match=message):
        VocabularyFiles(str(gpt2_folder)).load(END_OF_TEXT)


def test_a_path_that_does_not_exist_is_not_replaced_by_what_lies_beside(gpt2_folder):
    with pytest.raises(ConfigError, match="neither"):
        VocabularyFiles(str(gpt2_folder / "tokenizer.json"))


def test_an_unknown_end_is_refused(gpt2_folder):
    with pytest.raises(ConfigError, match="'</s>' is no token of the vocabulary"):
        VocabularyFiles(str(gpt2_folder)).load("</s>")
