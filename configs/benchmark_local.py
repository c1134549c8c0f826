"""A model whose compute dominates on two CPU cores: one stage for each.

    python -m scripts.benchmark local

About 2 minutes a pair of runs on two idle cores; the swarm reached 0.72 of the single
process's tokens/s.

The batch has many microbatches per stage, so that filling and draining the pipeline
costs little; the vocabulary is small, so that the stages can be balanced.
"""

from models.config import GPTConfig
from swarm_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = ExperimentConfig(
        run_id="benchmark_local",
        seed=1,
        steps=7,
        model=GPTConfig(
            num_layers=4, model_dim=512, num_heads=8, ffn_dim=2048, sequence_length=256
        ),
    )
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 2
    config.data.target_batch_size = 32
    config.swarm.num_stages = 2
    config.swarm.microbatch_size = 2
    config.validation.sequences = 2
    return config
