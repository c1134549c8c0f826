"""Two stages of three wide blocks: what the data path between peers is measured with.

    python -m scripts.benchmark relay --config configs/relay.py --device cuda13

It is made for one or two GPUs with 80 GB each; the benchmark makes its other cases by
overrides. docs/performance.md says how to read the result. The learning rate is small,
since nobody looks at the loss.
"""

from models.config import GPTConfig
from swarm_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = ExperimentConfig(
        run_id="relay",
        seed=1,
        steps=5,
        model=GPTConfig(
            num_layers=6,
            model_dim=4096,
            num_heads=32,
            ffn_dim=16384,
            sequence_length=2048,
        ),
    )
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 1
    config.data.target_batch_size = 512
    config.swarm.num_stages = 2
    config.swarm.microbatch_size = 1
    config.swarm.wire = "int8"
    config.tuning.microbatches_in_flight = 8
    config.validation.sequences = 1
    return config
