"""From text to microbatches that any trainer can produce again by id.

    dataset.py    ``open_dataset``: microbatches, validation, digest; Grain's shuffling
    corpus.py     where documents come from: standard library, local files
    catalogue.py  where documents come from: the TFDS catalogue
    local_tfds.py documents as a TFDS dataset in a folder
    cache.py      builds that dataset and its token streams, whole or not at all
    tokenizer.py  bytes, or byte-level BPE trained on the training split
    text.py       text of ids
    bigram.py     loss of a bigram model: what a language model has to beat

A corpus is read once, split by document and kept in a cache folder as a TFDS dataset
(array_record, written and read without TensorFlow) with one flat token file per split
beside it. Training reads only the token files, memory-mapped.
"""
