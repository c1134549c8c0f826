"""A small corpus of local files and an experiment that reads it."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from models.config import GPTConfig
from swarm_jax.config import DataConfig, ExperimentConfig

WORDS = "swarm stage peer ledger router token commit naïve 日本 0123 {} \n \n\n".split(
    " "
)


@pytest.fixture
def corpus_dir(tmp_path: Path) -> Path:
    """40 files of a few hundred bytes each, some in subfolders, one of them empty."""
    folder = tmp_path / "corpus"
    for i in range(40):
        words = random.Random(i).choices(WORDS, k=60)
        path = folder / f"part{i % 3}" / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(words), encoding="utf-8")
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "cache"


@pytest.fixture
def make_config(corpus_dir: Path) -> Callable[..., ExperimentConfig]:
    """An experiment on ``corpus_dir``: steps of 8 sequences, 16 tokens each."""

    def make(seed: int = 0, microbatch_size: int = 2, **data) -> ExperimentConfig:
        model = GPTConfig(
            num_layers=2, model_dim=8, num_heads=2, ffn_dim=8, sequence_length=16
        )
        config = ExperimentConfig(run_id="test", seed=seed, steps=100, model=model)
        settings = {"corpus": f"files:{corpus_dir}", "held_out_fraction": 0.2}
        config.data = DataConfig(**{**settings, "target_batch_size": 8, **data})
        config.validation.sequences = 8
        config.swarm.microbatch_size = microbatch_size
        return config

    return make
