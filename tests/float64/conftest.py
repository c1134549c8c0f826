"""float64 is a switch of the whole process: run this folder in one of its own.

``make test`` does. So no mistake can hide behind rounding.
"""

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time


@pytest.fixture(scope="session")
def plain():
    """Losses and final parameters by layer of plain training."""
    from tests.float64.plain import train_plainly

    return train_plainly()
