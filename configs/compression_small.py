"""Compression-aware architectures, small: 6.5 M parameters on bytes of Python source.

    python -m scripts.sweep configs/compression_small.py --variants all \\
        --vary seed=1,2,3 --device cuda13 --parallel 8 --workdir runs/small \\
        --config.swarm.microbatch_size=64 \\
        --json runs/small/results.json --markdown runs/small/results.md \\
        --plot runs/small/results.png

The study of ``configs/compression.py`` with fewer and narrower blocks, and with an
output matrix of its own. A swarm trains it, too:

    python -m scripts.launch --config configs/compression_small.py --workdir runs/swarm

(Microbatches of 64 give a card larger kernels; the gradient is the same sum.)
All variants train on the same 9.8 million tokens: 45 MFLOP a token (forward and
backward, attention over all positions), 4.4e14 FLOP a run, 2.9e16 the 66 runs of the
first command.
"""

from configs import compression
from models.config import GPTConfig
from swarm_jax.config import ExperimentConfig

STAGES = 4


def get_config() -> ExperimentConfig:
    """The baseline: nothing is compressed, values of float32 travel."""
    config = ExperimentConfig(
        run_id="compression_small",
        seed=1,
        steps=600,
        model=GPTConfig(
            num_layers=8,
            model_dim=256,
            num_heads=4,
            ffn_dim=1024,
            feed_forward="relu",
            norm="layer",
            positions="sinusoidal",
            biases=True,
            sequence_length=256,
            embedding_scale=16.0,
        ),
    )
    config.optimizer = compression.get_config().optimizer
    # Kaplan et al. 2020, equation D.1, for N = 6.3 million.
    config.optimizer.learning_rate = 1.05e-3
    config.optimizer.warmup_steps = 60
    config.data.target_batch_size = 64
    config.swarm.microbatch_size = 32
    config.validation.every_steps = 50
    config.validation.sequences = 512
    return compression.cut(config, STAGES, wire="float32")


def variants() -> dict[str, ExperimentConfig]:
    """The baseline, narrower wires, boundary layers with and without, shared blocks."""
    named = {"baseline": get_config()}
    for wire in ("bfloat16", "int8", "dynamic8"):
        named[f"{wire}_4stages"] = compression.cut(get_config(), STAGES, wire)
    named["dynamic8_2stages"] = compression.cut(get_config(), 2, "dynamic8")
    named |= compression.boundary_variants(get_config)
    named["shared_4stages"] = shared()
    return named


def shared() -> ExperimentConfig:
    """The baseline's depth with half its blocks, each applied twice."""
    config = get_config()
    config.model.num_layers //= 2
    config.model.block_repeats = 2
    return compression.cut(config, STAGES, wire="float32")
