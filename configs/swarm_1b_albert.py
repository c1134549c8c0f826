"""The model of SWARM's public prototype: 0.82 billion parameters, shared 12 times.

    python -m scripts.launch --config configs/swarm_1b_albert.py --workdir runs/albert

Four steps, to see that it runs, on one NVIDIA H200 that four peers share, on 2026-11-26
with other work beside: 4,345 tokens/s, 90 s in all; loss 11.38 before the first update
and 10.71 at the fourth step, validation loss 10.99:

    python -m scripts.launch --config configs/swarm_1b_albert.py --device cuda13 \\
        --peers-per-stage 1 --workdir runs/albert_4 --config.steps=4 \\
        --config.optimizer.warmup_steps=2 --config.validation.sequences=1 \\
        --config.data.target_batch_size=8 --config.tuning.microbatches_in_flight=4

Four stages of one block, each applied 12 times (9.7 billion parameters if they were not
shared), a norm at each stage's end, and ALBERT's factorised embedding and head; LAMB as
the prototype sets it, for steps of 4096 sequences. Three differences to it: what it
allocates and never uses is not there, initial values are this project's, and data are
what ``--config.data.corpus`` names, with a vocabulary of their own up to GPT-2's size.
"""

from models.config import GPTConfig
from swarm_jax.config import ExperimentConfig, OptimizerConfig


def get_config() -> ExperimentConfig:
    config = ExperimentConfig(
        run_id="swarm_1b_albert",
        seed=1,
        steps=15_000,
        model=GPTConfig(
            num_layers=4,
            block_repeats=12,
            model_dim=4096,
            num_heads=64,
            ffn_dim=16_384,
            norm="layer",
            norm_epsilon=1e-12,
            positions="learned",
            biases=True,
            vocab_size=50_257,
            vocab_multiple=128,
            sequence_length=2048,
            embedding_dim=128,
            embedding_norm=True,
            head="factorised",
            head_bias=True,
            boundaries=(1, 2, 3),
        ),
        optimizer=OptimizerConfig(
            name="lamb",
            learning_rate=0.0035355339,
            warmup_steps=3125,
            schedule="linear",
            beta2=0.999,
            epsilon=1e-6,
            weight_decay=0.01,
        ),
    )
    config.data.tokenizer = "bpe"
    config.data.bpe_vocab_size = 50_257
    config.data.target_batch_size = 4096
    config.swarm.num_stages = 4
    config.swarm.microbatch_size = 1
    config.swarm.wire = "int8"
    config.tuning.rebalancing.period_s = 300.0
    return config
