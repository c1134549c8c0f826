"""What a stage computes: Flax NNX modules. Knows no network and no swarm_jax.

config.py      GPTConfig: sizes and choices of the model; no jax
gpt.py         decoder-only Transformer as NNX modules
functional.py  the same as pure functions of plain pytrees, stage by stage
"""
