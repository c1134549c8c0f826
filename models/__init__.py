"""What a stage computes: Flax NNX modules. Knows no network and no swarm_jax.

config.py      GPTConfig: sizes and choices of the model; no jax
flops.py       its FLOPs and parameters in numbers; no jax
numerics.py    dtypes and attention kernel of this process
layers.py      initial values, norms, matrices
sharding.py    how a stage is divided among several devices
attention.py   causal self-attention as an NNX module
boundary.py    the layers between stages
gpt.py         decoder-only Transformer: embedding, block, head
segments.py    a run over some of the stacked blocks
pure.py        a module as pure functions
functional.py  the model as pure functions of plain pytrees, stage by stage
decoding.py    the model one token after another, with a cache
generation.py  which token comes next
schedule.py    the learning rate of a step, as a number

Models of others; nothing here needs transformers:

hugging_face.py         where tensors are in layouts of Llama and GPT-2
hugging_face_config.py  which models those layouts hold
safetensors_files.py    reads and writes the files

An implementation in PyTorch, to compare with; nothing else needs torch:

torch_gpt.py       the same model, written from the formulas
torch_layers.py    its blocks and boundary layers
torch_weights.py   its parameters and gradients, in the format of functional.to_layers
torch_lamb.py      LAMB
torch_training.py  its training: clipping, AdamW or LAMB
torch_parity.py    how far JAX and PyTorch come apart
"""
