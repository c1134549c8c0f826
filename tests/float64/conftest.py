"""float64 is a switch of the whole process: run this folder in one of its own.

``make test`` does. So no mistake can hide behind rounding.
"""

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time
