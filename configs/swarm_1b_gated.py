"""The prototype's model with a gated feed-forward: 1.09 billion parameters.

    python -m scripts.launch --config configs/swarm_1b_gated.py --workdir runs/gated

It is built abstractly by the tests, and was not trained: there is no result. Not shared
it would have 12.9 billion parameters.
"""

from configs import swarm_1b_albert
from swarm_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = swarm_1b_albert.get_config()
    config.run_id = "swarm_1b_gated"
    config.model.feed_forward = "geglu"
    return config
