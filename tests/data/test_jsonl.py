"""JSON lines as a stream of documents, packed in any way, broken in any way."""

import gzip
import json
import logging
import os
import subprocess
import sys

import pytest
import zstandard

from swarm_jax.config import DataConfig
from swarm_jax.data import jsonl
from swarm_jax.data.cache import cached_tokens
from swarm_jax.data.jsonl import JsonLinesCorpus
from swarm_jax.errors import ConfigError

TEXTS = [f"Document {i}: naïve 日本\n" * (i % 7 + 1) for i in range(50)]


def lines_of(texts, field="text") -> bytes:
    records = [{field: text, "meta": {"pile_set_name": "Test"}} for text in texts]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def zstd(raw: bytes) -> bytes:
    """Two frames, as tools that compress in parallel write."""
    pack = zstandard.ZstdCompressor().compress
    return pack(raw[: len(raw) // 2]) + pack(raw[len(raw) // 2 :])


PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_line_is_a_document_however_it_is_packed(suffix, tmp_path):
    path = tmp_path / f"shard.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](lines_of(TEXTS)))
    documents = list(JsonLinesCorpus(str(path)).documents())
    assert [document.text.decode() for document in documents] == TEXTS
    assert documents[3].name == f"{path.name}:4"


def test_shards_have_an_order_that_depends_on_their_names_only(tmp_path):
    for number in range(6):
        path = tmp_path / "a" / f"{number}.jsonl.zst"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zstd(lines_of(TEXTS[number * 5 : number * 5 + 5])))
    (tmp_path / "a" / "README.txt").write_text("no shard")
    names = [d.name for d in JsonLinesCorpus(str(tmp_path / "a")).documents()]
    assert len(set(names)) == 30
    lines = [int(name.split(":")[1]) for name in names]
    assert lines == [1, 2, 3, 4, 5] * 6
    (tmp_path / "a").rename(tmp_path / "b")
    moved = JsonLinesCorpus(str(tmp_path / "b" / "*.zst"))
    assert [document.name for document in moved.documents()] == names


def test_blank_lines_and_empty_texts_are_no_documents(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n" + lines_of(["one", ""]) + b"  \n" + lines_of(["two"]))
    names = [document.name for document in JsonLinesCorpus(str(path)).documents()]
    assert names == ["x.jsonl:2", "x.jsonl:5"]


def test_what_is_no_unicode_is_replaced(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}\n{"text": "a\\ud800b"}\n')
    texts = [d.text.decode() for d in JsonLinesCorpus(str(path)).documents()]
    assert texts[0] == "caf\N{REPLACEMENT CHARACTER}"
    assert texts[1].strip("\N{REPLACEMENT CHARACTER}ab") == ""


BROKEN = [
    ('{"text": "cut', "it is no JSON"),
    ('["text"]', "it is no object but a list"),
    ('{"body": "x", "n": 1}', r"no text in 'text' \(data.text_field\), but in: 'body'"),
    ('{"text": null}', "no text in 'text' .*but in: none"),
    ('{"text": 7}', "no text in 'text'"),
    ("[" * 100_000, "it is no JSON"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_a_broken_line_is_named_with_its_file(line, message, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines_of(TEXTS[:2]) + line.encode() + b"\n")
    with pytest.raises(ConfigError, match=rf"x\.jsonl, line 3: .*{message}.*skip"):
        list(JsonLinesCorpus(str(path)).documents())


def test_broken_lines_are_skipped_and_counted_if_asked_for(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    lines = [lines_of(["one"])] + [line.encode() + b"\n" for line, _ in BROKEN]
    path.write_bytes(b"".join([*lines, lines_of(["two"])]))
    corpus = JsonLinesCorpus(str(path), on_broken_line="skip")
    with caplog.at_level(logging.WARNING):
        texts = [[d.text for d in corpus.documents()] for _ in range(2)]
    assert texts == [[b"one", b"two"]] * 2
    [message] = caplog.messages
    assert message.startswith(f"{len(BROKEN)} broken lines skipped")
    assert f"{path}, line 2: it is no JSON" in message


def test_a_line_without_end_is_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 64)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * 1000 + b'"}\n' + lines_of(["one"])[:40])
    with pytest.raises(ConfigError, match="line 1: it has 64 bytes or more"):
        list(JsonLinesCorpus(str(path)).documents())
    path.write_bytes(b"x" * 1000 + b'\n{"text": "one"}\n')
    documents = list(JsonLinesCorpus(str(path), on_broken_line="skip").documents())
    assert [(d.name, d.text) for d in documents] == [("x.jsonl:2", b"one")]


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".zst", lambda raw: raw[: len(raw) - 20], "end is missing"),
        (".zst", lambda raw: lines_of(TEXTS), "no Zstandard file"),
        (".gz", lambda raw: raw[: len(raw) - 20], "ended before|end"),
        (".gz", lambda raw: lines_of(TEXTS), "Not a gzipped file"),
    ],
)
def test_a_file_that_cannot_be_unpacked_to_its_end_is_refused(
    suffix, damage, message, tmp_path
):
    path = tmp_path / f"shard.jsonl{suffix}"
    text = [os.urandom(300).hex() for _ in range(50)]
    path.write_bytes(damage(PACKERS[suffix](lines_of(text))))
    with pytest.raises(ConfigError, match=rf"cannot read .*shard.*({message}).*again"):
        list(JsonLinesCorpus(str(path)).documents())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere.jsonl", "no folder .*'jsonl:FILE' .*pile"),
        ("nowhere/*.zst", "no file matches"),
        (".", r"no files in it that end in \.jsonl or"),
    ],
)
def test_missing_shards_have_their_own_message(where, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        JsonLinesCorpus(where)


def test_a_changed_shard_is_another_corpus(make_config, tmp_path, cache_dir):
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines_of(TEXTS))
    data = make_config(corpus=f"jsonl:{path}").data
    before = cached_tokens(data, cache_dir)
    path.write_bytes(lines_of([*TEXTS[1:], "a new one"]))
    assert cached_tokens(data, cache_dir).digest != before.digest
    assert not list(cache_dir.rglob("*array_record*"))


def test_all_lines_without_text_say_so(make_config, tmp_path, cache_dir):
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines_of(TEXTS, "body"))
    data = make_config(corpus=f"jsonl:{path}", on_broken_line="skip").data
    with pytest.raises(ConfigError, match="0 document.s. with text"):
        cached_tokens(data, cache_dir)


PREPARE = """
import resource, sys
from pathlib import Path
from swarm_jax.config import DataConfig
from swarm_jax.data.cache import cached_tokens
from swarm_jax.data.packing import open_sequences

def peak_mb(corpus):
    made = cached_tokens(DataConfig(corpus=f"jsonl:{corpus}"), Path(sys.argv[1]))
    open_sequences(made.splits["train"], "documents", 512)
    print(len(made.splits["train"].tokens))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

small = peak_mb(sys.argv[2])
print(peak_mb(sys.argv[3]) - small)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path, cache_dir):
    """120,000 documents, 33 MB of text, are prepared in 16 MB more than 2,000."""
    for name, count in (("small", 2_000), ("large", 120_000)):
        pack = zstandard.ZstdCompressor().stream_writer
        with pack((tmp_path / f"{name}.jsonl.zst").open("wb")) as file:
            for i in range(count):
                file.write(b'{"text": "%d %s"}\n' % (i, b"some words " * 24))
    paths = [str(tmp_path / f"{name}.jsonl.zst") for name in ("small", "large")]
    prepared = subprocess.run(
        [sys.executable, "-c", PREPARE, str(cache_dir), *paths],
        capture_output=True,
        text=True,
    )
    assert prepared.returncode == 0, prepared.stderr
    tokens, more, growth_mb = map(float, prepared.stdout.split())
    assert more > 50 * tokens > 0
    assert growth_mb < 16


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"corpus": "jsonl:"}, "'jsonl:PATH_OR_GLOB'"),
        ({"on_broken_line": "mend"}, "use one of"),
        ({"packing": "tight"}, "use one of"),
        ({"tokenizer": "gpt2"}, "needs the path of a tokenizer.json"),
        ({"tokenizer_path": "x"}, "make their own vocabulary"),
    ],
)
def test_bad_setting_says_what_to_use(setting, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**setting)
