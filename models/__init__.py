"""What a stage computes: Flax NNX modules. Knows no network and no swarm_jax.

config.py      GPTConfig: sizes and choices of the model; no jax
flops.py       its FLOPs and parameters in numbers; no jax
numerics.py    dtypes and attention kernel of this process
layers.py      initial values, norms, matrices
attention.py   causal self-attention as an NNX module
boundary.py    the layers between stages
gpt.py         decoder-only Transformer: embedding, block, head
pure.py        a module as pure functions
functional.py  the model as pure functions of plain pytrees, stage by stage
schedule.py    the learning rate of a step, as a number

An implementation in PyTorch, to compare with; nothing else needs torch:

torch_gpt.py       the same model, written from the formulas
torch_training.py  its training: clipping, AdamW
torch_parity.py    how far JAX and PyTorch come apart
"""
