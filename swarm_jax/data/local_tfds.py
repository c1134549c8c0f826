"""Documents as a TFDS dataset in a folder: array_record, without TensorFlow.

TFDS is imported where it is used: a process that finds its cache complete needs none of
it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from swarm_jax.data.corpus import Document

VERSION = "1.0.0"
TRAIN, VALIDATION = SPLITS = ("train", "validation")
_DOCUMENTS_AT_ONCE = 256
_BYTES_AT_ONCE = 1 << 22


def write_tfds(folder: Path, documents: Iterable[tuple[str, Document]]) -> None:
    """Writes a TFDS dataset with splits "train" and "validation" to ``folder``.

    ``SequentialWriter`` is the part of TFDS that keeps our order, prints nothing and
    needs no TensorFlow for array_record.

    Args:
        folder: An existing, empty folder.
        documents: Pairs of split and document.
    """
    import tensorflow_datasets as tfds

    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name="corpus",
            version=tfds.core.Version(VERSION),
            data_dir=str(folder),
            module_name=__name__,
        ),
        features=tfds.features.FeaturesDict(
            {"name": tfds.features.Text(), "text": tfds.features.Text()}
        ),
    )
    writer = tfds.core.SequentialWriter(
        info, max_examples_per_shard=1 << 20, file_format="array_record"
    )
    writer.initialize_splits(list(SPLITS))
    for batch in batched(documents):
        examples: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        for split, document in batch:
            examples[split].append({"name": document.name, "text": document.text})
        writer.add_examples(examples)
    writer.close_all()


def read_tfds(folder: Path, split: str) -> Iterator[Document]:
    """Documents of a split of the TFDS dataset in ``folder``, in the order written."""
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(folder).as_data_source(split)
    for example in source:
        yield Document(example["name"].decode(), example["text"])


def batched(
    documents: Iterable[tuple[str, Document]],
) -> Iterator[list[tuple[str, Document]]]:
    """Pairs of split and document in portions of a few hundred, or a few megabytes."""
    portion: list[tuple[str, Document]] = []
    size = 0
    for pair in documents:
        portion.append(pair)
        size += len(pair[1].text)
        if len(portion) == _DOCUMENTS_AT_ONCE or size >= _BYTES_AT_ONCE:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
