"""The fused attention of GPUs against attention written out; skipped without a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import attend
from models.numerics import Numerics

LENGTH, HEAD_DIM = 256, 64


@pytest.fixture(autouse=True)
def gpu():
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU")


def output_and_gradients(inputs, weights, numerics, dtype):
    def weighed(*inputs):
        mixed = attend(*(x.astype(dtype) for x in inputs), numerics)
        return jnp.sum(mixed.astype(jnp.float32) * weights), mixed

    gradients, mixed = jax.jit(jax.grad(weighed, argnums=(0, 1, 2), has_aux=True))(
        *inputs
    )
    return [np.asarray(x, np.float32) for x in (mixed, *gradients)]


@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("batch", [1, 3])
def test_fused_attention_equals_the_written_one(batch, kv_heads):
    shapes = [(batch, LENGTH, heads, HEAD_DIM) for heads in (8, kv_heads, kv_heads, 8)]
    keys = jax.random.split(jax.random.key(0), 4)
    *inputs, weights = map(jax.random.normal, keys, shapes)
    exact = Numerics(jnp.float32, jnp.float32, flash=False)
    fused = Numerics(jnp.float32, jnp.bfloat16, flash=True)
    with jax.default_matmul_precision("highest"):
        expected = output_and_gradients(inputs, weights, exact, jnp.float32)
    actual = output_and_gradients(inputs, weights, fused, jnp.bfloat16)
    for wanted, got in zip(expected, actual, strict=True):
        error = np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2))
        assert error < 1e-2, error
