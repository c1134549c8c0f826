"""A tiny model in a checkpoint, for the scripts that read one."""

import numpy as np
import pytest

from scripts import initial_weights
from swarm_jax.config import load_config

EXPERIMENT = """
from models.config import GPTConfig
from swarm_jax.config import ExperimentConfig


def get_config():
    model = GPTConfig(
        num_layers=2,
        model_dim=16,
        num_heads=2,
        ffn_dim=24,
        feed_forward="swiglu",
        sequence_length=16,
    )
    config = ExperimentConfig(run_id="test", steps=9, model=model)
    config.optimizer.warmup_steps = 1
    config.data.corpus = "files:CORPUS"
    config.data.target_batch_size = 4
    config.swarm.microbatch_size = 2
    config.swarm.num_stages = 2
    config.validation.sequences = 6
    return config
"""


@pytest.fixture
def experiment(tmp_path):
    """Path of a config file, on a corpus of its own."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(20):
        (corpus / f"{number}.txt").write_text(f"{number} green bottles. " * 40)
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT.replace("CORPUS", str(corpus)))
    return str(path)


@pytest.fixture
def make_checkpoint(tmp_path, experiment):
    """``make(*overrides) -> layers``: saves random ones in the folder "run"."""

    def make(*overrides):
        config = load_config(experiment, overrides)
        generator = np.random.default_rng(0)
        layers = {
            layer: {
                name: generator.normal(scale=0.3, size=shape).astype(np.float32)
                for name, shape in arrays.items()
            }
            for layer, arrays in initial_weights.shapes_of(config).items()
        }
        folder = tmp_path / "run" / "checkpoints"
        initial_weights.save(config, layers, layers.get, folder, "a test")
        return layers

    return make
