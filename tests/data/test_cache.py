"""A cache entry is whole or absent, and rebuilt when what determines it changes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from swarm_jax.data import cache
from swarm_jax.data.cache import cached_tokens
from swarm_jax.data.corpus import files_corpus
from swarm_jax.data.local_tfds import TRAIN, VALIDATION, read_tfds
from swarm_jax.errors import ConfigError


def entries(cache_dir: Path) -> list[str]:
    return sorted(path.name for path in cache_dir.iterdir())


def test_token_files_hold_every_document_closed_with_end_of_text(
    make_config, corpus_dir, cache_dir
):
    made = cached_tokens(make_config().data, cache_dir)
    assert made.vocab_size == 257
    documents = []
    for split in (TRAIN, VALIDATION):
        tokens, ends = made.splits[split].tokens, made.splits[split].ends
        assert tokens.dtype == np.dtype("<u2")
        assert np.array_equal(np.flatnonzero(tokens == 256), ends - np.uint64(1))
        parts = np.split(np.array(tokens), ends.astype(int))[:-1]
        documents += [part[:-1].astype(np.uint8).tobytes() for part in parts]
    expected = [d.text for d in files_corpus(str(corpus_dir)).documents()]
    assert sorted(documents) == sorted(expected)


def test_documents_lie_beside_as_a_tfds_dataset(make_config, cache_dir):
    cached_tokens(make_config().data, cache_dir)
    [folder] = cache_dir.iterdir()
    builder = tfds.builder_from_directory(folder)
    assert builder.info.file_format.value == "array_record"
    train, held_out = (
        {document.name for document in read_tfds(folder, split)}
        for split in (TRAIN, VALIDATION)
    )
    assert len(train) + len(held_out) == 40 and not train & held_out
    assert builder.info.splits[VALIDATION].num_examples == len(held_out)


def test_second_opening_builds_nothing(make_config, cache_dir, monkeypatch):
    first = cached_tokens(make_config().data, cache_dir)
    monkeypatch.setattr(cache, "_fill", None)
    second = cached_tokens(make_config(target_batch_size=4).data, cache_dir)
    assert first.digest == second.digest


@pytest.mark.parametrize(
    "change",
    [
        {"held_out_fraction": 0.5},
        {"max_corpus_bytes": 3000},
        {"tokenizer": "bpe", "bpe_vocab_size": 300},
        {"tokenizer": "bpe", "bpe_vocab_size": 301},
        {"text": "changed"},
    ],
)
def test_digest_names_text_split_and_tokenizer(
    change, make_config, corpus_dir, cache_dir, tmp_path
):
    digests = {cached_tokens(make_config().data, cache_dir).digest}
    if "text" in change:
        (corpus_dir / "part0" / "0.txt").write_text(change.pop("text"))
    data = make_config(**change).data
    digests.add(cached_tokens(data, cache_dir).digest)
    digests.add(cached_tokens(data, tmp_path / "other").digest)
    assert len(digests) == 2
    assert len(entries(cache_dir)) == 2


def test_another_vocabulary_size_builds_another_tokenizer(make_config, cache_dir):
    for size in (300, 310):
        data = make_config(tokenizer="bpe", bpe_vocab_size=size).data
        assert cached_tokens(data, cache_dir).vocab_size == size


def test_bpe_is_trained_on_the_training_split_only(make_config, corpus_dir, cache_dir):
    data = make_config(tokenizer="bpe", bpe_vocab_size=300).data

    def build(name: str) -> tuple[str, set[str]]:
        made = cached_tokens(data, cache_dir / name)
        largest = max(split.tokens.max() for split in made.splits.values())
        assert largest < made.vocab_size
        [folder] = (cache_dir / name).iterdir()
        held_out = {document.name for document in read_tfds(folder, VALIDATION)}
        return (folder / "tokenizer.json").read_text(), held_out

    tokenizer, held_out = build("before")
    for name in held_out:
        (corpus_dir / name).write_text("altogether other words " * 50)
    assert build("after") == (tokenizer, held_out)


def test_later_of_two_builds_throws_its_copy_away(make_config, cache_dir, monkeypatch):
    data = make_config().data
    fill = cache._fill

    def fill_while_another_finishes(*args):
        monkeypatch.setattr(cache, "_fill", fill)
        fill(*args)
        assert entries(cache_dir)[0].startswith(".partial")
        cached_tokens(data, cache_dir)

    monkeypatch.setattr(cache, "_fill", fill_while_another_finishes)
    cached_tokens(data, cache_dir)
    [name] = entries(cache_dir)
    assert name.startswith("tokens-")


def test_failed_build_leaves_nothing(make_config, cache_dir, monkeypatch):
    monkeypatch.setattr(cache, "_write_tokens", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cached_tokens(make_config().data, cache_dir)
    assert entries(cache_dir) == []


KILLED_BUILD = """
import json, signal, sys
from pathlib import Path
from swarm_jax.config import DataConfig
from swarm_jax.data import cache

def hang(*args):
    print("writing tokens", flush=True)
    signal.pause()

cache._write_tokens = hang
cache.cached_tokens(DataConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


def test_killed_build_is_never_read_and_its_rest_is_removed(
    make_config, corpus_dir, cache_dir, tmp_path
):
    data = make_config().data
    settings = {"corpus": data.corpus, "held_out_fraction": data.held_out_fraction}
    command = [sys.executable, "-c", KILLED_BUILD, json.dumps(settings)]
    with subprocess.Popen(
        [*command, str(cache_dir)], stdout=subprocess.PIPE, text=True
    ) as build:
        assert build.stdout.readline() == "writing tokens\n"
        build.send_signal(signal.SIGKILL)
    [partial] = entries(cache_dir)
    assert partial.startswith(".partial-")
    digest = cached_tokens(data, cache_dir).digest
    [name] = entries(cache_dir)
    assert name.startswith("tokens-")
    assert digest == cached_tokens(data, tmp_path / "other").digest


@pytest.mark.parametrize("file", ["train.tokens", "train.ends", "manifest.json"])
@pytest.mark.parametrize("damage", ["removed", "emptied"])
def test_damaged_entry_is_built_again(file, damage, make_config, cache_dir):
    data = make_config().data
    expected = cached_tokens(data, cache_dir)
    copy = np.array(expected.splits[TRAIN].tokens)
    [folder] = cache_dir.iterdir()
    (folder / file).unlink()
    if damage == "emptied":
        (folder / file).touch()
    mended = cached_tokens(data, cache_dir)
    assert mended.digest == expected.digest
    assert np.array_equal(mended.splits[TRAIN].tokens, copy)


def test_cache_that_cannot_be_written_is_named(make_config, cache_dir):
    cache_dir.write_text("a file")
    with pytest.raises(ConfigError, match="Cannot write to the data cache .*cache: "):
        cached_tokens(make_config().data, cache_dir)


def test_corpus_of_empty_files_is_refused(make_config, cache_dir, tmp_path):
    folder = tmp_path / "blank"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text("")
    with pytest.raises(ConfigError, match="0 document.s. with text"):
        cached_tokens(make_config(corpus=f"files:{folder}").data, cache_dir)
