"""Microbatches by id, validation sequences, digest.

Microbatch ``(step, index)`` is a pure function of seed, step and index: row b of it is
sequence ``step * target_batch_size + index * microbatch_size + b`` of one endless
stream of sequences. So the order of the data depends neither on the number of stages
nor on the microbatch size, and any trainer can produce any microbatch again.

A sequence is a window of L + 1 tokens of the training split; windows overlap by the one
token that is the last target of one and the first input of the next. Each epoch of the
stream is all windows, once each, in an order of its own.
"""

# Shape suffixes: B microbatch, L sequence.

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.data.bigram import bigram_loss
from swarm_jax.data.cache import cached_tokens
from swarm_jax.data.local_tfds import TRAIN, VALIDATION
from swarm_jax.errors import ConfigError


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
        digest: Names corpus and tokenizer; two trainers must agree in it.
        vocab_size: Of the tokenizer; all ids are below it.
        train_tokens: Training split [num_tokens], any integer dtype.
        validation_tokens: Held-out split [num_tokens].

    Raises:
        ConfigError: A split is too short for one batch.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        digest: str,
        vocab_size: int,
        train_tokens: np.ndarray,
        validation_tokens: np.ndarray,
    ):
        # Here: it takes a second and brings jax along.
        import grain

        length = config.model.sequence_length
        self.digest = digest
        self.vocab_size = vocab_size
        self._microbatch_size = config.swarm.microbatch_size
        self._microbatches_per_step = config.microbatches_per_step
        self._tokens_per_step = config.tokens_per_step
        self._train_tokens = train_tokens
        windows = Windows(train_tokens, length)
        _check_train(config, windows)
        self._train = (
            grain.MapDataset.source(windows)
            .seed(config.seed)
            .shuffle()
            .repeat()
            .batch(self._microbatch_size)
        )
        held_out = Windows(validation_tokens, length)
        _check_validation(config, held_out)
        self._validation = _spread(held_out, config.validation.sequences)

    def microbatch(self, step: int, index: int) -> Microbatch:
        """Microbatch ``index`` of a step."""
        assert step >= 0 and 0 <= index < self._microbatches_per_step
        return _microbatch(self._train[step * self._microbatches_per_step + index])

    def step_loss_tokens(self, step: int) -> int:
        """Sum of ``loss_tokens`` over a step; here every target counts."""
        del step
        return self._tokens_per_step

    def validation_microbatch(self, index: int) -> Microbatch:
        """Held-out microbatch, ``validation.sequences / microbatch_size`` in all."""
        start = index * self._microbatch_size
        assert 0 <= start < len(self._validation)
        return _microbatch(self._validation[start : start + self._microbatch_size])

    def bigram_loss(self) -> float:
        """Loss of a Witten-Bell bigram model on the validation sequences, in nats.

        It is fitted on all training tokens: see ``bigram.py``.
        """
        return bigram_loss(
            self._train_tokens,
            self._validation[:, :-1],
            self._validation[:, 1:],
            self.vocab_size,
        )


class Windows:
    """Non-overlapping windows of L inputs and their L targets; the rest is left.

    Args:
        tokens: Token ids [num_tokens].
        sequence_length: L.
    """

    def __init__(self, tokens: np.ndarray, sequence_length: int):
        self.tokens = tokens
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return max(0, len(self.tokens) - 1) // self.sequence_length

    def __getitem__(self, index: int) -> np.ndarray:
        start = index * self.sequence_length
        return self.tokens[start : start + self.sequence_length + 1]


def open_dataset(config: ExperimentConfig, cache_dir: Path) -> TokenDataset:
    """Opens the experiment's data; builds it first where the cache has none.

    Args:
        config: The experiment.
        cache_dir: Any folder; experiments and processes may share it.

    Raises:
        ConfigError: The corpus is missing, empty, too small or cannot be downloaded.
    """
    manifest, tokens = cached_tokens(config.data, cache_dir)
    return TokenDataset(
        config,
        digest=manifest.digest,
        vocab_size=manifest.vocab_size,
        train_tokens=tokens[TRAIN],
        validation_tokens=tokens[VALIDATION],
    )


def _microbatch(windows: np.ndarray) -> Microbatch:
    tokens = windows.astype(np.int32)
    inputs_BL = np.ascontiguousarray(tokens[:, :-1])
    targets_BL = np.ascontiguousarray(tokens[:, 1:])
    return Microbatch(inputs_BL, targets_BL, loss_tokens=targets_BL.size)


def _spread(windows: Windows, count: int) -> np.ndarray:
    """``count`` windows at even distances, so that all held-out files are sampled."""
    return np.stack([windows[i * len(windows) // count] for i in range(count)])


def _check_train(config: ExperimentConfig, windows: Windows) -> None:
    batch, length = config.data.target_batch_size, config.model.sequence_length
    if len(windows) < batch:
        raise ConfigError(
            f"The training split of data.corpus={config.data.corpus!r} has "
            f"{len(windows.tokens)} tokens, but one step of "
            f"data.target_batch_size={batch} sequences of "
            f"model.sequence_length={length} needs {batch * length + 1}. Add text, or "
            "lower one of the two"
        )


def _check_validation(config: ExperimentConfig, windows: Windows) -> None:
    count, length = config.validation.sequences, config.model.sequence_length
    if len(windows) < count:
        raise ConfigError(
            f"The held-out split of data.corpus={config.data.corpus!r} has "
            f"{len(windows.tokens)} tokens, but validation.sequences={count} of "
            f"model.sequence_length={length} need {count * length + 1}. Add text, "
            f"raise data.held_out_fraction={config.data.held_out_fraction} or lower "
            "validation.sequences"
        )
