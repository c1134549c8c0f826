"""``swarm_1b_albert`` in small, byte by byte, made for one CPU host.

    python -m scripts.launch --config configs/swarm_tiny_shared.py --workdir runs/shared

It is built abstractly by the tests, and was not trained to its end: there is no result.
"""

from configs import swarm_1b_albert
from swarm_jax.config import DataConfig, ExperimentConfig


def get_config() -> ExperimentConfig:
    config = swarm_1b_albert.get_config()
    config.run_id = "swarm_tiny_shared"
    config.steps = 150
    config.model.block_repeats = 3
    config.model.model_dim = 64
    config.model.num_heads = 4
    config.model.ffn_dim = 256
    config.model.vocab_size = 257
    config.model.sequence_length = 128
    config.model.embedding_dim = 32
    config.optimizer.learning_rate = 0.01
    config.optimizer.warmup_steps = 30
    config.data = DataConfig(target_batch_size=32)
    config.swarm.microbatch_size = 4
    config.tuning.rebalancing.period_s = 10.0
    config.validation.every_steps = 50
    return config
