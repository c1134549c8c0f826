"""Which documents a corpus has, in which order, and which of them are held out."""

import os
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_jax.config import DataConfig
from swarm_jax.data.corpus import HeldOut, files_corpus, stdlib_corpus
from swarm_jax.errors import ConfigError

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=30, unique=True)


def held_out_names(names, fraction: float) -> set[str]:
    held_out = HeldOut(iter(names), fraction)
    return {name for name in names if name in held_out}


def names_of(corpus) -> list[str]:
    return [document.name for document in corpus.documents()]


def test_standard_library_is_megabytes_of_source_without_tests():
    documents = list(stdlib_corpus(Path(sysconfig.get_path("stdlib"))).documents())
    names = {document.name for document in documents}
    assert {"os.py", "asyncio/base_events.py", "json/decoder.py"} <= names
    folders = {folder for name in names for folder in Path(name).parts[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert all(name.endswith(".py") for name in names)
    assert 5e6 < sum(len(document.text) for document in documents) < 5e7


def test_standard_library_in_a_zip_file_says_what_to_use(tmp_path):
    with pytest.raises(ConfigError, match="corpus=files:FOLDER"):
        stdlib_corpus(tmp_path)


def test_folder_gives_every_file_with_text_once(corpus_dir):
    (corpus_dir / ".hidden").write_text("x")
    os.mkfifo(corpus_dir / "pipe")
    names = names_of(files_corpus(str(corpus_dir)))
    assert sorted(names) == sorted(f"part{i % 3}/{i}.txt" for i in range(40))
    assert names == names_of(files_corpus(str(corpus_dir)))


def test_glob_gives_the_files_it_matches(corpus_dir):
    names = names_of(files_corpus(f"{corpus_dir}/**/*7.txt"))
    assert sorted(names) == [
        "part0/27.txt",
        "part1/37.txt",
        "part1/7.txt",
        "part2/17.txt",
    ]


def test_relative_folder_and_moved_folder_have_the_same_identity(
    corpus_dir, tmp_path, monkeypatch
):
    identity = files_corpus(str(corpus_dir)).identity()
    monkeypatch.chdir(corpus_dir.parent)
    assert files_corpus("corpus").identity() == identity
    moved = corpus_dir.rename(tmp_path / "elsewhere")
    assert files_corpus(str(moved)).identity() == identity
    (moved / "part0" / "0.txt").write_text("changed")
    assert files_corpus(str(moved)).identity() != identity


def test_bytes_that_are_no_utf8_are_replaced(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).write_bytes(b"caf\xe9")
    [document] = files_corpus(str(tmp_path)).documents()
    assert document.text.decode() == "caf\N{REPLACEMENT CHARACTER}"
    assert document.name == "caf\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("max_bytes", [1, 2, 3, 500, 5000])
def test_limit_reads_no_more_and_cuts_only_the_last_document(corpus_dir, max_bytes):
    whole = list(files_corpus(str(corpus_dir)).documents())
    part = list(files_corpus(str(corpus_dir), max_bytes).documents())
    assert max_bytes - 3 <= sum(len(document.text) for document in part) <= max_bytes
    assert part[:-1] == whole[: max(0, len(part) - 1)]
    assert all(document.text.decode() for document in part)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere", "there is no folder 'nowhere'"),
        ("nowhere/*.txt", "no file matches 'nowhere/[*].txt'"),
        (".", "has no files in it"),
    ],
)
def test_missing_text_has_its_own_message(where, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        files_corpus(where)


def test_file_that_vanishes_is_named(corpus_dir):
    corpus = files_corpus(str(corpus_dir))
    (corpus_dir / "part1" / "1.txt").unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*part1/1\.txt"):
        corpus.identity()


@settings(deadline=None, derandomize=True)
@given(names=NAMES, fraction=st.floats(0.001, 0.999))
def test_both_sides_have_documents_whatever_the_names(names, fraction):
    held_out = held_out_names(names, fraction)
    assert held_out and held_out < set(names)
    assert held_out == held_out_names(names[::-1], fraction)


def test_held_out_share_is_the_fraction_and_survives_new_documents():
    names = [f"{i}.txt" for i in range(4000)]
    held_out = held_out_names(names, 0.1)
    assert 0.08 < len(held_out) / len(names) < 0.12
    assert held_out_names(names[:2000], 0.1) == held_out & set(names[:2000])


@pytest.mark.parametrize("names", [[], ["only.txt"]])
def test_corpus_that_cannot_be_divided_says_how_to_divide_it(names):
    with pytest.raises(ConfigError, match=f"{len(names)} document.*split -C"):
        held_out_names(names, 0.1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"corpus": "files"}, "use 'stdlib', 'files:FOLDER_OR_GLOB'"),
        ({"corpus": "tfds:"}, "use 'stdlib', 'files:FOLDER_OR_GLOB'"),
        ({"max_corpus_bytes": 0}, "use a number of bytes"),
        ({"max_corpus_bytes": "10MB"}, "use a number of bytes"),
        ({"bpe_vocab_size": 256}, "use 257 or more"),
    ],
)
def test_bad_setting_says_what_to_use(setting, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**setting)
