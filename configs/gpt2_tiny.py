"""GPT-2's layout in small: LayerNorm, learned positions, biases, a tied head.

    python -m scripts.launch --config configs/gpt2_tiny.py --workdir runs/gpt2_tiny

The first and the last stage hold a copy of the embedding's table each.

85 s on one NVIDIA H200 that six peers share (bfloat16, on 2026-11-26); validation loss
2.2076 at step 600 (bigram model of the same bytes: 2.4865) on the library of Python
3.12.3. One process 2.2071.
"""

from configs import tiny
from swarm_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = tiny.get_config()
    config.run_id = "gpt2_tiny"
    # Positions that are learned take longer to be of use.
    config.steps = 600
    config.model.norm = "layer"
    config.model.positions = "learned"
    config.model.biases = True
    config.model.tied_head = True
    return config
