"""How fast tokens are made and fed, by one process."""

import dataclasses
import time
from itertools import count, islice
from pathlib import Path

from swarm_jax.config import ExperimentConfig
from swarm_jax.data.corpus import limited, open_corpus
from swarm_jax.data.dataset import open_dataset
from swarm_jax.data.tokenizer import ByteTokenizer, VocabularyFiles, train_bpe
from swarm_jax.data_config import PACKINGS

SAMPLE_BYTES = 8_000_000
_TEXTS_AT_ONCE = 256
_FEED_S = 0.5


def tokenisation_mb_per_s(
    config: ExperimentConfig, repeats: int
) -> dict[str, list[float]]:
    """10^6 bytes of text per second, by tokenizer, on the beginning of the corpus.

    Args:
        config: "gpt2" is measured if ``data.tokenizer_path`` is given.
        repeats: How often each is timed.
    """
    corpus = open_corpus(config.data, config.data.corpus)
    texts = [d.text for d in limited(corpus.documents(), SAMPLE_BYTES)]
    size_mb = sum(map(len, texts)) / 1e6
    tokenizers = {
        "bytes": ByteTokenizer(),
        "bpe": train_bpe(texts, config.data.bpe_vocab_size),
    }
    if config.data.tokenizer_path is not None:
        files = VocabularyFiles(config.data.tokenizer_path)
        tokenizers["gpt2"] = files.load(config.data.end_of_text)
    found: dict[str, list[float]] = {name: [] for name in tokenizers}
    for _ in range(repeats):
        for name, tokenizer in tokenizers.items():
            begun_s = time.perf_counter()
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                tokenizer.encode(texts[start : start + _TEXTS_AT_ONCE])
            found[name].append(size_mb / (time.perf_counter() - begun_s))
    return found


def feeding_tokens_per_s(
    config: ExperimentConfig, cache_dir: Path, repeats: int
) -> dict[str, list[float]]:
    """Input tokens per second of ``microbatch()``, by packing, in the order of a run.

    Each packing is opened and warmed up by one step before it is timed.
    """
    tokens = config.swarm.microbatch_size * config.model.sequence_length
    per_step = config.microbatches_per_step
    found: dict[str, list[float]] = {}
    for packing in PACKINGS:
        data = dataclasses.replace(config.data, packing=packing)
        dataset = open_dataset(dataclasses.replace(config, data=data), cache_dir)
        numbers = count()
        for number in islice(numbers, per_step):
            dataset.microbatch(*divmod(number, per_step))
        found[packing] = []
        for _ in range(repeats):
            begun_s = now_s = time.perf_counter()
            fed = 0
            while now_s - begun_s < _FEED_S:
                dataset.microbatch(*divmod(next(numbers), per_step))
                fed += tokens
                now_s = time.perf_counter()
            found[packing].append(fed / (now_s - begun_s))
    return found
