"""GPT-2's layout in small: LayerNorm, learned positions, biases, a tied head.

    python -m scripts.launch --config configs/gpt2_tiny.py --workdir runs/gpt2_tiny

The first and the last stage hold a copy of the embedding's table each. It is built
abstractly by the tests, and was not trained to its end: there is no result.
"""

from configs import tiny
from swarm_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = tiny.get_config()
    config.run_id = "gpt2_tiny"
    config.model.norm = "layer"
    config.model.positions = "learned"
    config.model.biases = True
    config.model.tied_head = True
    return config
