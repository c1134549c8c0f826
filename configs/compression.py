"""Compression-aware architectures, at the size of the SWARM prototype's study: 253 M.

    python -m scripts.sweep configs/compression.py --variants all --device cuda13 \\
        --workdir runs/compression
    python -m scripts.train_single --config configs/compression.py --workdir runs/253m

A bottleneck or maxout layer at each boundary of 2 or 4 stages sends a half or a quarter
of the channels; the 8-bit wire alone a byte for each value. Model and hyper-parameters
are those of the prototype's commands (github.com/yandex-research/swarm, folder
bottleneck), which train on 24 GPUs: 245,760 tokens a step, 8.9 billion in all. Put
OpenWebText's texts into the folder that ``data.corpus`` names.

Not run by us at this size: ``configs/compression_small.py`` is.
"""

from models.config import GPTConfig
from swarm_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """The baseline: one stage."""
    config = ExperimentConfig(
        run_id="compression",
        seed=4,
        steps=36_144,
        model=GPTConfig(
            num_layers=16,
            model_dim=1024,
            num_heads=16,
            ffn_dim=4096,
            feed_forward="relu",
            norm="layer",
            positions="sinusoidal",
            biases=True,
            vocab_size=50_264,
            sequence_length=512,
            embedding_scale=32.0,
            tied_head=True,
        ),
    )
    # Adam is AdamW without decay. The rate is that of Kaplan et al. 2020, equation D.1
    # (0.003239 - 0.0001395 ln N), as the prototype has it: for N = 10,000.
    config.optimizer.learning_rate = 0.0019541575181093226
    config.optimizer.warmup_steps = 5000
    config.optimizer.beta2 = 0.995
    config.optimizer.epsilon = 1e-7
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.1
    config.data.corpus = "files:data/openwebtext"
    config.data.tokenizer = "bpe"
    config.data.bpe_vocab_size = 50_260
    config.data.target_batch_size = 480
    config.swarm.num_stages = 1
    config.validation.every_steps = 1000
    config.validation.sequences = 960
    return config


def variants() -> dict[str, ExperimentConfig]:
    """The prototype's runs, and each with its 8-bit wire."""
    named = {"baseline": get_config()}
    for stages in (2, 4):
        named[f"dynamic8_{stages}stages"] = cut(get_config(), stages, wire="dynamic8")
    return named | boundary_variants(get_config)


def boundary_variants(make_base) -> dict[str, ExperimentConfig]:
    """Bottleneck and maxout, 2 and 4 times, on 2 and 4 stages, without and with 8 bits.

    Args:
        make_base: Makes the config that each is a change of.
    """
    named = {}
    for wire, suffix in (("float32", ""), ("dynamic8", "_dynamic8")):
        for kind in ("bottleneck", "maxout"):
            for factor in (2, 4):
                for stages in (2, 4):
                    config = cut(make_base(), stages, wire)
                    add_boundaries(config, kind, factor)
                    named[f"{kind}_{factor}x_{stages}stages{suffix}"] = config
    return named


def cut(config: ExperimentConfig, num_stages: int, wire: str) -> ExperimentConfig:
    """Cuts the blocks into stages of one size."""
    layers = config.model.num_layers // num_stages
    config.swarm.num_stages = num_stages
    config.swarm.layers_per_stage = (layers,) * num_stages
    config.swarm.wire = wire
    return config


def add_boundaries(config: ExperimentConfig, kind: str, factor: int) -> None:
    """Adds a boundary layer wherever the stages are cut."""
    layers, blocks = config.swarm.layers_per_stage[0], config.model.num_layers
    config.model.boundaries = tuple(range(layers, blocks, layers))
    config.model.boundary = kind
    config.model.boundary_factor = factor
