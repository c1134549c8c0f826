"""Where documents come from: the TFDS catalogue.

Datasets that lie prepared in TFDS's data folder (``$TFDS_DATA_DIR``, else
``~/tensorflow_datasets``) are read as they are; others are downloaded and prepared
there first, as array_record. Without TensorFlow that works for those whose builder
does not use it.
"""

import contextlib
import difflib
import os
import re
from collections.abc import Iterator

import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import download_manager, extractor

from swarm_jax.data.corpus import Document, limited, utf8
from swarm_jax.errors import ConfigError

_PROBE_TIMEOUT_S = 10.0
_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\d.*]+)?")
_FAILURES = (
    ImportError,
    OSError,
    ValueError,
    AssertionError,
    RuntimeError,
    tfds.download.DownloadError,
    download_manager.NonMatchingChecksumError,
    extractor.ExtractError,
)


class CatalogueCorpus:
    """The "train" split of a catalogue dataset; one example is one document.

    Args:
        name: "NAME", "NAME/CONFIG", either with ":VERSION" or without.
        text_field: Field of an example that holds its text.
        max_bytes: Text to read at most; None for all of it.

    Raises:
        ConfigError: No such dataset or field, or it cannot be had; says what to do.
    """

    is_copied = True

    def __init__(self, name: str, text_field: str, max_bytes: int | None = None):
        builder = _find(name)
        _check_field(name, builder.info.features, text_field)
        self._text_field = text_field
        self._max_bytes = max_bytes
        if not builder.is_prepared():
            _check_network(name, builder)
        with _explained(name):
            builder.download_and_prepare(file_format="array_record")
            if "train" not in builder.info.splits:
                raise ValueError(f"no split 'train' among {list(builder.info.splits)}")
            self._source = builder.as_data_source("train")
        split = builder.info.splits["train"]
        size = f"{max_bytes} of {split.num_bytes} bytes, {split.num_examples} examples"
        self._identity = f"{builder.info.full_name}, {text_field}: {size}"

    def identity(self) -> str:
        """Name, version and size: the catalogue's versions name their content."""
        return self._identity

    def documents(self) -> Iterator[Document]:
        every = (
            Document(f"train/{index}", utf8(example[self._text_field]))
            for index, example in enumerate(self._source)
        )
        return limited(every, self._max_bytes)


def _find(name: str) -> tfds.core.DatasetBuilder:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"data.corpus='tfds:{name}': write 'tfds:NAME' or 'tfds:NAME/CONFIG', as "
            "in https://www.tensorflow.org/datasets/catalog"
        )
    try:
        return tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ConfigError(
            f"data.corpus='tfds:{name}': TFDS has no such dataset, neither in its "
            f"catalogue nor in {_data_dir()}. {hint}"
        ) from error
    except _FAILURES as error:
        raise ConfigError(f"data.corpus='tfds:{name}': {error}") from error


def _check_field(
    name: str, features: tfds.features.FeaturesDict, text_field: str
) -> None:
    texts = [
        field
        for field, feature in features.items()
        if feature.shape == () and feature.np_dtype in (object, np.str_)
    ]
    if text_field not in texts:
        raise ConfigError(
            f"data.text_field={text_field!r}: tfds:{name} has no such field of text. "
            f"It has: {', '.join(sorted(texts)) or 'none'}"
        )


def _check_network(name: str, builder: tfds.core.DatasetBuilder) -> None:
    """Asks the host of the first file for a sign of life.

    TFDS itself tries a host that cannot be reached for three minutes.
    """
    web = [url for url in builder.url_infos or () if url.startswith("http")]
    if web:
        with _explained(name):
            requests.head(web[0], timeout=_PROBE_TIMEOUT_S)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise ConfigError(
            f"data.corpus='tfds:{name}' cannot be prepared here: {_cause(error)}\n"
            "Prepare it on a machine that can (pip install tensorflow "
            f"tensorflow-datasets; tfds build {name} --file_format=array_record), copy "
            f"its folder to {_data_dir()} (or set TFDS_DATA_DIR), or use local text: "
            "data.corpus='files:FOLDER'"
        ) from error


def _cause(error: BaseException) -> str:
    if isinstance(error, requests.RequestException):
        return f"the network does not reach its files ({error})"
    if isinstance(error, ImportError):
        return f"its builder needs a package that is not installed ({error})"
    if isinstance(error, NotImplementedError):
        return f"it was prepared in a format without random access ({error})"
    return f"{type(error).__name__}: {error}"


def _data_dir() -> str:
    return os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR
