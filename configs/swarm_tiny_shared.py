"""``swarm_1b_albert`` in small, byte by byte, made for one CPU host.

    python -m scripts.launch --config configs/swarm_tiny_shared.py --workdir runs/shared

94 s on one NVIDIA H200 that eight peers share (bfloat16, int8 wire, on 2026-11-26);
validation loss 1.8135 at step 600 (bigram model of the same bytes: 2.4865) on the
library of Python 3.12.3. One process, without a wire: 1.8231.
"""

from configs import swarm_1b_albert
from swarm_jax.config import DataConfig, ExperimentConfig


def get_config() -> ExperimentConfig:
    config = swarm_1b_albert.get_config()
    config.run_id = "swarm_tiny_shared"
    config.steps = 600
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
