"""Models of known sizes: those of the configs, and of the paper's compression study."""

import dataclasses
from pathlib import Path

import pytest

from models.config import GPTConfig
from models.flops import parameter_count
from swarm_jax.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"

STUDY = GPTConfig(
    num_layers=16,
    model_dim=1024,
    num_heads=16,
    ffn_dim=4096,
    feed_forward="relu",
    norm="layer",
    positions="sinusoidal",
    biases=True,
    vocab_size=50_264,
    sequence_length=512,
    embedding_scale=32.0,
    tied_head=True,
)


def unshared(config):
    """With parameters of its own for each time that a block is applied."""
    repeats = config.block_repeats
    return dataclasses.replace(
        config,
        num_layers=config.num_layers * repeats,
        block_repeats=1,
        boundaries=tuple(place * repeats for place in config.boundaries),
    )


@pytest.mark.parametrize(
    ("name", "shared", "without_sharing"),
    [
        # Of the prototype's 819.8 million, 33,024 are in layers that it never uses.
        ("swarm_1b_albert", 819.8e6, 9.68e9),
        ("swarm_1b_gated", 1.088e9, 12.9e9),
        ("swarm_1b", 1011.6e6, 13.09e9),
    ],
)
def test_models_of_the_paper_have_their_sizes(name, shared, without_sharing):
    config = load_config(CONFIGS / f"{name}.py").model
    assert parameter_count(config) == pytest.approx(shared, rel=3e-4)
    assert parameter_count(unshared(config)) == pytest.approx(without_sharing, rel=2e-3)


def test_the_compression_study_has_its_size():
    assert parameter_count(STUDY) == 253_011_968


@pytest.mark.parametrize(
    ("kind", "factor", "parameters"),
    [
        ("bottleneck", 2, 1_053_184),
        ("bottleneck", 4, 528_128),
        ("maxout", 2, 528_384),
        ("maxout", 4, 265_728),
    ],
)
def test_compressors_have_the_sizes_of_the_study(kind, factor, parameters):
    compressed = dataclasses.replace(
        STUDY, boundaries=(8,), boundary=kind, boundary_factor=factor
    )
    assert parameter_count(compressed) - parameter_count(STUDY) == parameters
