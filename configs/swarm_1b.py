"""1.01 billion parameters in four stages of one block, each applied 16 times.

    python -m scripts.launch --config configs/swarm_1b.py --workdir runs/swarm_1b

It was trained for six steps, for its speed: 2,635 tokens/s on one NVIDIA H200, 5,199 on
two H100 (docs/performance.md); what it learns in a whole run is not known. Its head is
its embedding table, of which the first and the last stage hold a copy each (with
``--config.model.tied_head=False`` it has 1.22 billion parameters).

The size is that of the SWARM paper's run: blocks of 12 D^2 and one table of 50,304 rows
as wide as the model; 13.1 billion parameters if they were not shared. All else is as in
the paper's public prototype (``swarm_1b_albert``), but for rotary positions, which add
no parameters.
"""

from configs import swarm_1b_albert
from swarm_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = swarm_1b_albert.get_config()
    config.run_id = "swarm_1b"
    config.model.block_repeats = 16
    config.model.positions = "rotary"
    config.model.embedding_dim = None
    # Rows are the head's columns as well: 1 / sqrt(D) makes logits as large as 1.
    config.model.embedding_scale = 64.0
    config.model.head = "linear"
    config.model.head_bias = False
    config.model.tied_head = True
    return config
