"""Microbatches are pure functions of seed, step and index."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import GPTConfig
from swarm_jax.config import ExperimentConfig, ValidationConfig
from swarm_jax.data.dataset import TokenDataset, open_dataset
from swarm_jax.data.packing import Windows
from swarm_jax.data_config import HELD_OUT
from swarm_jax.errors import ConfigError

# Shape suffixes: B microbatch, L sequence.


def counting_dataset(
    *, windows: int, seed: int = 0, batch: int = 4, microbatch: int = 2, length: int = 3
) -> TokenDataset:
    """Tokens 0, 1, 2, ...: a window is known by its first token."""
    model = GPTConfig(
        num_layers=1, model_dim=2, num_heads=1, ffn_dim=1, sequence_length=length
    )
    config = ExperimentConfig(run_id="test", seed=seed, steps=100, model=model)
    config.data.target_batch_size = batch
    config.swarm.microbatch_size = microbatch
    config.validation.sequences = batch
    # Two more tokens than the windows need: an end that is left.
    tokens = np.arange(windows * length + 3, dtype=np.uint32)
    config.model.vocab_size = len(tokens)
    sequences = Windows(tokens, length)
    return TokenDataset(
        config,
        digest="",
        vocab_size=len(tokens),
        train_tokens=tokens,
        train=sequences,
        validation={HELD_OUT: sequences},
    )


def order_of(dataset: TokenDataset, sequences: int, *, batch: int, microbatch: int):
    """Windows of the first sequences, in the order of their global number."""
    per_step = batch // microbatch
    rows = [
        row
        for number in range(sequences // microbatch)
        for row in dataset.microbatch(*divmod(number, per_step)).inputs[:, 0]
    ]
    return [int(row) // 3 for row in rows]


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    windows=st.integers(4, 40),
    seed=st.integers(0, 2**63),
    batch_and_microbatch=st.sampled_from([(4, 1), (4, 2), (4, 4), (3, 1), (3, 3)]),
)
def test_every_epoch_covers_every_window_once(windows, seed, batch_and_microbatch):
    batch, microbatch = batch_and_microbatch
    dataset = counting_dataset(
        windows=windows, seed=seed, batch=batch, microbatch=microbatch
    )
    order = order_of(dataset, windows * batch, batch=batch, microbatch=microbatch)
    for epoch in range(batch):
        shown = order[epoch * windows : (epoch + 1) * windows]
        assert sorted(shown) == list(range(windows))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = []
    for seed in range(4):
        dataset = counting_dataset(windows=40, seed=seed)
        order = order_of(dataset, 160, batch=4, microbatch=2)
        orders += [tuple(order[i : i + 40]) for i in range(0, 160, 40)]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("microbatch", [1, 2, 4, 8])
def test_order_does_not_depend_on_the_microbatch_size(microbatch):
    """The order was taken from another run: a Grain that changes it is noticed."""
    dataset = counting_dataset(windows=10, seed=1, batch=8, microbatch=microbatch)
    order = order_of(dataset, 16, batch=8, microbatch=microbatch)
    assert order == [6, 5, 7, 3, 8, 4, 9, 2, 0, 1, 2, 8, 9, 3, 5, 0]


def test_microbatch_can_be_asked_for_in_any_order_and_again():
    dataset = counting_dataset(windows=10)
    ids = [(step, index) for step in range(6) for index in range(2)]
    forward = [dataset.microbatch(*i).inputs for i in ids]
    backward = [counting_dataset(windows=10).microbatch(*i).inputs for i in ids[::-1]]
    for a, b in zip(forward, backward[::-1], strict=True):
        assert np.array_equal(a, b)
    assert dataset.microbatch(10**9, 1).inputs.shape == (2, 3)


def test_targets_are_the_inputs_one_token_on():
    microbatch = counting_dataset(windows=10).microbatch(3, 1)
    assert microbatch.inputs.dtype == microbatch.targets.dtype == np.int32
    assert microbatch.inputs.shape == microbatch.targets.shape == (2, 3)
    assert np.array_equal(microbatch.targets, microbatch.inputs + 1)
    assert (
        microbatch.inputs.flags.c_contiguous and microbatch.targets.flags.c_contiguous
    )
    assert microbatch.loss_tokens == 6


def test_loss_tokens_of_a_step_are_those_of_its_microbatches():
    dataset = counting_dataset(windows=10)
    for step in range(5):
        counted = sum(dataset.microbatch(step, i).loss_tokens for i in range(2))
        assert dataset.step_loss_tokens(step) == counted


def test_validation_sequences_are_spread_over_the_held_out_text():
    dataset = counting_dataset(windows=100)
    rows = [dataset.validation_microbatch(HELD_OUT, i).inputs for i in range(2)]
    assert (np.concatenate(rows)[:, 0] // 3).tolist() == [0, 25, 50, 75]


def test_bigram_loss_is_that_of_the_validation_sequences():
    dataset = counting_dataset(windows=10)
    # Every pair was seen once, and no token has two followers.
    unigram = 2 / (2 * dataset.vocab_size)
    assert dataset.bigram_loss() == pytest.approx(-np.log((1 + unigram) / 2))


def test_dataset_of_files_is_the_same_from_every_cache(make_config, tmp_path):
    datasets = [open_dataset(make_config(), tmp_path / name) for name in "ab"]
    assert datasets[0].digest == datasets[1].digest
    assert datasets[0].bigram_loss() == datasets[1].bigram_loss() < np.log(257)
    for step in range(5):
        first, second = (dataset.microbatch(step, 3) for dataset in datasets)
        assert np.array_equal(first.targets, second.targets)


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_a_trainer_that_takes_over_feeds_the_same(packing, make_config, cache_dir):
    """Each microbatch is a function of seed, step and index; so is its loss count."""
    first = open_dataset(make_config(packing=packing), cache_dir)
    ids = [(step, index) for step in range(12) for index in range(4)]
    before = {i: first.microbatch(*i) for i in ids}
    other = open_dataset(make_config(packing=packing), cache_dir)
    for step, index in reversed(ids):
        again = other.microbatch(step, index)
        assert np.array_equal(again.inputs, before[step, index].inputs)
        assert np.array_equal(again.targets, before[step, index].targets)
        assert again.loss_tokens == (again.targets >= 0).sum() > 0
    for step in range(12):
        counted = sum(before[step, index].loss_tokens for index in range(4))
        assert other.step_loss_tokens(step) == counted
    seeded = open_dataset(make_config(seed=1, packing=packing), cache_dir)
    inputs = seeded.microbatch(0, 0).inputs
    assert not np.array_equal(inputs, before[0, 0].inputs)


def test_packed_validation_masks_what_no_document_has(make_config, cache_dir):
    dataset = open_dataset(make_config(packing="documents"), cache_dir)
    for microbatch in dataset.validation_sets()["validation_loss"]:
        ends = microbatch.inputs == 256
        assert (microbatch.targets[ends] < 0).all()
        assert microbatch.loss_tokens == (~ends).sum() > 0
    assert 0 < dataset.bigram_loss() < np.log(257)


@pytest.mark.parametrize("tokenizer", [{}, {"tokenizer": "bpe", "bpe_vocab_size": 300}])
def test_validation_sets_have_their_own_text(
    tokenizer, make_config, cache_dir, tmp_path
):
    for name in ("ones", "twos"):
        record = json.dumps({"text": name * 200}) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(record * 3)
    config = make_config(**tokenizer)
    digest = open_dataset(config, cache_dir).digest
    sets = [f"{name}=jsonl:{tmp_path}/{name}.jsonl" for name in ("ones", "twos")]
    config.validation = ValidationConfig(sequences=8, sets=sets)
    dataset = open_dataset(config, cache_dir)
    assert dataset.digest != digest
    shown = {
        metric: np.concatenate([m.inputs for m in microbatches])
        for metric, microbatches in dataset.validation_sets().items()
    }
    metrics = ["validation_loss", "validation_loss/ones", "validation_loss/twos"]
    assert list(shown) == metrics
    assert {inputs.shape for inputs in shown.values()} == {(8, 16)}
    if not tokenizer:
        text = shown["validation_loss/twos"].astype(np.uint8).tobytes()
        assert set(text) == set(b"twos")
    again = dataset.validation_microbatch("ones", 1)
    assert np.array_equal(again.inputs, shown["validation_loss/ones"][2:4])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "validation.sets: wiki=jsonl:.*no folder"),
        ('{"text": ""}\n', "validation.sets: wiki=.*no text in it"),
        ('{"text": "short"}\n', "'wiki' makes 0 sequences .*=8. Add text or lower"),
    ],
)
def test_a_validation_set_that_cannot_be_used_is_named(
    text, message, make_config, cache_dir, tmp_path
):
    path = tmp_path / "wiki.jsonl"
    if text is not None:
        path.write_text(text)
    config = make_config()
    config.validation = ValidationConfig(sequences=8, sets=[f"wiki=jsonl:{path}"])
    with pytest.raises(ConfigError, match=message):
        open_dataset(config, cache_dir)


def test_held_out_text_is_in_no_training_batch(make_config, corpus_dir, cache_dir):
    for i in range(40):
        (corpus_dir / f"part{i % 3}" / f"{i}.txt").write_bytes(bytes([i]) * 300)
    dataset = open_dataset(make_config(), cache_dir)
    train = {t for step in range(100) for t in dataset.microbatch(step, 0).inputs.flat}
    held_out = {
        token
        for microbatch in dataset.validation_sets()["validation_loss"]
        for token in microbatch.inputs.flat
    }
    assert train & held_out <= {256}
    assert len(held_out) > 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_batch_size": 4096}, r"makes \d+ sequences .*=4096\. Add text"),
        ({"held_out_fraction": 0.001}, r"'held_out' makes \d+ .*=64\. Add text, raise"),
    ],
)
def test_too_little_text_says_how_much_is_needed(
    change, message, make_config, cache_dir
):
    config = make_config(**change)
    config.validation.sequences = 64 if "held_out_fraction" in change else 8
    with pytest.raises(ConfigError, match=message):
        open_dataset(config, cache_dir)


PRINT_MODULES = """
import sys
import swarm_jax.data.dataset, swarm_jax.data.cache
print(sorted({"jax", "grain", "tensorflow_datasets", "torch"} & set(sys.modules)))
import swarm_jax.data.catalogue, grain
print(sorted({"tensorflow", "torch"} & set(sys.modules)))
"""


def test_import_is_light_and_tensorflow_is_never_needed():
    command = [sys.executable, "-c", PRINT_MODULES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
