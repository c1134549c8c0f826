"""From text to microbatches that any trainer can produce again by id.

    dataset.py    ``open_dataset``: microbatches, validation, digest; Grain's shuffling
    packing.py    sequences: windows over all documents, or whole documents
    cache.py      tokens of a corpus, made once and kept
    entries.py    entries of the cache: folders of arrays, whole or not at all
    tokenizer.py  bytes, byte-level BPE trained on the training split, GPT-2's files
    corpus.py     where documents come from: standard library, local files
    jsonl.py      where documents come from: JSON lines
    catalogue.py  where documents come from: the TFDS catalogue
    local_tfds.py documents as a TFDS dataset in a folder
    paths.py      finds the files of a corpus
    compressed.py .gz and .zst files as streams
    text.py       text of ids
    bigram.py     loss of a bigram model: what a language model has to beat
    speed.py      how fast tokens are made and fed

A corpus is read as a stream, split by document, and kept in a cache folder as one flat
token file per split; of many small files also as a TFDS dataset (array_record, written
and read without TensorFlow). Training reads only token files, memory-mapped.
"""
