"""Datasets of the TFDS catalogue, prepared beforehand or out of reach."""

import json

import numpy as np
import pytest
import requests

from swarm_jax.data.catalogue import CatalogueCorpus
from swarm_jax.data.corpus import Document
from swarm_jax.data.dataset import open_dataset
from swarm_jax.data.local_tfds import TRAIN, VALIDATION, write_tfds
from swarm_jax.errors import ConfigError


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """TFDS's data folder, with a dataset "corpus" in it."""
    folder = tmp_path / "tfds" / "corpus" / "1.0.0"
    folder.mkdir(parents=True)
    texts = [(TRAIN, f"text number {i}, " * 20) for i in range(30)]
    documents = [*texts, (TRAIN, ""), (VALIDATION, "left out")]
    write_tfds(
        folder,
        ((split, Document(text[:14], text.encode())) for split, text in documents),
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


def test_prepared_dataset_is_read_without_network(data_dir, make_config, cache_dir):
    dataset = open_dataset(make_config(corpus="tfds:corpus"), cache_dir)
    text = dataset.microbatch(0, 0).inputs.astype(np.uint8).tobytes()
    assert b"text number" in text or b"number" in text
    other = make_config(corpus="tfds:corpus", text_field="name", target_batch_size=2)
    other.validation.sequences = 2
    assert open_dataset(other, cache_dir).digest != dataset.digest


def test_documents_are_the_non_empty_examples_of_the_training_split(data_dir):
    documents = list(CatalogueCorpus("corpus", "text").documents())
    assert len({document.name for document in documents}) == len(documents) == 30
    assert all(document.text.startswith(b"text number") for document in documents)
    short = list(CatalogueCorpus("corpus", "text", 1000).documents())
    assert sum(len(document.text) for document in short) == 1000


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("imdb_review", "text", "no such dataset.*Did you mean 'imdb_reviews'"),
        ("corpus", "txt", "no such field of text. It has: name, text"),
        ("huggingface:a/b", "text", "write 'tfds:NAME'"),
        ("imdb_reviews:9.9.9", "text", "cannot be loaded at version 9.9.9"),
    ],
)
def test_wrong_name_or_field_says_what_there_is(data_dir, name, field, message):
    with pytest.raises(ConfigError, match=message):
        CatalogueCorpus(name, field)


def test_without_network_it_says_how_to_get_the_data(data_dir, monkeypatch):
    def unreachable(url, timeout):
        assert timeout < 60
        raise requests.ConnectionError(f"no route to {url}")

    monkeypatch.setattr(requests, "head", unreachable)
    with pytest.raises(ConfigError) as caught:
        CatalogueCorpus("imdb_reviews", "text")
    for part in (
        "network",
        "no route to http://ai.stanford.edu",
        "tfds build",
        "files:",
    ):
        assert part in str(caught.value)


def test_format_without_random_access_is_explained(data_dir):
    path = data_dir / "corpus" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(ConfigError, match="without random access(.|\n)*array_record"):
        CatalogueCorpus("corpus", "text")


def test_dataset_without_training_split_is_explained(data_dir):
    path = data_dir / "corpus" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "splits": info["splits"][1:]}))
    with pytest.raises(ConfigError, match="no split 'train' among"):
        CatalogueCorpus("corpus", "text")
