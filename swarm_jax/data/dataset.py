"""Microbatches by id, validation sequences, digest.

Microbatch ``(step, index)`` is a pure function of seed, step and index: row b of it is
sequence ``step * target_batch_size + index * microbatch_size + b`` of one endless
stream of sequences. So the order of the data depends neither on the number of stages
nor on the microbatch size, and any trainer can produce any microbatch again. Each epoch
of the stream is all sequences (``packing.py``), once each, in an order of its own.
"""

# Shape suffixes: B microbatch, L sequence.

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.data.bigram import bigram_loss
from swarm_jax.data.cache import Tokens, cached_set, cached_tokens
from swarm_jax.data.local_tfds import TRAIN, VALIDATION
from swarm_jax.data.packing import Sequences, open_sequences
from swarm_jax.data_config import HELD_OUT
from swarm_jax.errors import ConfigError

BIGRAM_TOKENS = 1 << 25
"""The bigram model is fitted on no more than so many training tokens."""


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Attributes:
    inputs: int32 [B, L].
    targets: int32 [B, L]; negative where no loss is taken.
    loss_tokens: Number of targets that loss is taken of.
    """

    inputs: np.ndarray
    targets: np.ndarray
    loss_tokens: int


class TokenDataset:
    """The data of one experiment. Safe to use from several threads.

    Args:
        config: The experiment.
        digest: Names corpora and tokenizer; two trainers must agree in it.
        vocab_size: Of the tokenizer; all ids are below it.
        train_tokens: Training split [num_tokens], any integer dtype.
        train: Its sequences.
        validation: Sequences of each validation set; of the held-out split, too.

    Raises:
        ConfigError: A split is too short for one batch, or the model's vocabulary too
            small.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        digest: str,
        vocab_size: int,
        train_tokens: np.ndarray,
        train: Sequences,
        validation: Mapping[str, Sequences],
    ):
        # Here: it takes a second and brings jax along.
        import grain

        _check_vocabulary(config, vocab_size)
        _check_train(config, train)
        self.digest = digest
        self.vocab_size = vocab_size
        self._config = config
        self._microbatch_size = config.swarm.microbatch_size
        self._microbatches_per_step = config.microbatches_per_step
        self._train_tokens = train_tokens
        self._train = train
        order = grain.MapDataset.range(len(train)).seed(config.seed).shuffle().repeat()
        self._by_microbatch = order.batch(self._microbatch_size)
        self._by_step = order.batch(config.data.target_batch_size)
        self._validation = {
            name: _spread(config, name, sequences)
            for name, sequences in validation.items()
        }

    def microbatch(self, step: int, index: int) -> Microbatch:
        """Microbatch ``index`` of a step."""
        assert step >= 0 and 0 <= index < self._microbatches_per_step
        number = step * self._microbatches_per_step + index
        sequences = self._by_microbatch[number]
        loss_tokens = self._train.loss_tokens(sequences)
        return Microbatch(*self._train.rows(sequences), loss_tokens)

    def step_loss_tokens(self, step: int) -> int:
        """Sum of ``loss_tokens`` over a step, without reading its tokens; 1 or more."""
        return self._train.loss_tokens(self._by_step[step])

    def validation_microbatch(self, name: str, index: int) -> Microbatch:
        """Microbatch of a set: ``validation.sequences / microbatch_size`` in all."""
        inputs, targets = self._validation[name]
        rows = slice(index * self._microbatch_size, (index + 1) * self._microbatch_size)
        assert 0 <= rows.start < len(inputs)
        loss_tokens = int((targets[rows] >= 0).sum())
        return Microbatch(inputs[rows], targets[rows], loss_tokens)

    def validation_sets(self) -> dict[str, list[Microbatch]]:
        """All microbatches of all sets, by what their loss is called."""
        settings = self._config.validation
        indices = range(settings.sequences // self._microbatch_size)
        return {
            metric: [self.validation_microbatch(name, index) for index in indices]
            for name, metric in settings.metrics.items()
        }

    def bigram_loss(self) -> float:
        """Loss of a Witten-Bell bigram model on the held-out sequences, in nats.

        It is fitted on the first ``BIGRAM_TOKENS`` training tokens: see ``bigram.py``.
        """
        return bigram_loss(
            self._train_tokens[:BIGRAM_TOKENS],
            *self._validation[HELD_OUT],
            self.vocab_size,
        )


def open_dataset(config: ExperimentConfig, cache_dir: Path) -> TokenDataset:
    """Opens the experiment's data; builds it first where the cache has none.

    Args:
        config: The experiment.
        cache_dir: Any folder; experiments and processes may share it.

    Raises:
        ConfigError: A corpus is missing, empty, too small or cannot be downloaded; the
            tokenizer's files are missing, or do not fit the model.
    """
    tokens = cached_tokens(config.data, cache_dir)
    _check_vocabulary(config, tokens.vocab_size)
    sets = {
        name: cached_set(config.data, name, corpus, tokens, cache_dir)
        for name, corpus in config.validation.corpora.items()
    }

    def sequences(of: Tokens, split: str) -> Sequences:
        length = config.model.sequence_length
        return open_sequences(of.splits[split], config.data.packing, length)

    return TokenDataset(
        config,
        digest=_digest(tokens, sets),
        vocab_size=tokens.vocab_size,
        train_tokens=tokens.splits[TRAIN].tokens,
        train=sequences(tokens, TRAIN),
        validation={
            name: sequences(of, VALIDATION)
            for name, of in {HELD_OUT: tokens, **sets}.items()
        },
    )


def _digest(tokens: Tokens, sets: Mapping[str, Tokens]) -> str:
    """Under one name, all trainers must validate with the same text."""
    parts = [tokens.digest, {name: of.digest for name, of in sets.items()}]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _spread(
    config: ExperimentConfig, name: str, sequences: Sequences
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences at even distances, so that the whole set is sampled."""
    count, length = config.validation.sequences, config.model.sequence_length
    if len(sequences) < count:
        remedy = "Add text"
        if name == HELD_OUT:
            fraction = config.data.held_out_fraction
            remedy += f", raise data.held_out_fraction={fraction}"
        raise ConfigError(
            f"The validation set {name!r} makes {len(sequences)} sequences of "
            f"model.sequence_length={length}, but validation.sequences={count}. "
            f"{remedy} or lower validation.sequences"
        )
    return sequences.rows([i * len(sequences) // count for i in range(count)])


def _check_vocabulary(config: ExperimentConfig, vocab_size: int) -> None:
    if config.model.vocab_size < vocab_size:
        raise ConfigError(
            f"model.vocab_size={config.model.vocab_size} is too small for the "
            f"vocabulary of data.tokenizer={config.data.tokenizer!r}: use {vocab_size} "
            "or more"
        )


def _check_train(config: ExperimentConfig, train: Sequences) -> None:
    batch, length = config.data.target_batch_size, config.model.sequence_length
    if len(train) < batch:
        raise ConfigError(
            f"The training split of data.corpus={config.data.corpus!r} makes "
            f"{len(train)} sequences of model.sequence_length={length}, but a step has "
            f"data.target_batch_size={batch}. Add text, or lower one of the two"
        )
