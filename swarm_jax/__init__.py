"""SWARM parallelism in JAX: train a model that no single machine of yours can hold.

config.py    typed experiment schema, loader, fingerprints
config_file.py  config files as modules
errors.py    exception tree
metrics.py   JSON-lines metrics, every name with its unit
core/        pure logic: ids, ledger, router, step closing. No I/O, no clock, no jax
stage/       pure JAX: what one stage computes, jit-compiled, and the device's queue
data/        corpus, tokenizer, microbatches by id
net/         the seam to the network: Protocols, wire format, adapters
roles/       the long-running processes: stage server, trainer
sim/         virtual-time event loop and modelled compute
launcher/    starts, watches and stops the processes of a swarm on one machine
"""
