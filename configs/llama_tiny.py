"""A model of today's kind in small: RMSNorm, SwiGLU, grouped queries, rotary positions.

    python -m scripts.launch --config configs/llama_tiny.py --workdir runs/llama_tiny

It is built abstractly by the tests, and was not trained to its end: there is no result.
"""

from configs import tiny
from swarm_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = tiny.get_config()
    config.run_id = "llama_tiny"
    config.model.feed_forward = "swiglu"
    # Two thirds: three matrices are then as large as two of 4 D (Shazeer 2020).
    config.model.ffn_dim = 344
    config.model.num_kv_heads = 2
    return config
