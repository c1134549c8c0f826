"""What all rooms of the model are built from: initial values, norms, matrices.

Matrix products run in the compute dtype; norms and logits in the parameter dtype.

Shape suffixes: N tokens of a microbatch, D model, V vocabulary.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros
from jax.typing import DTypeLike

from models.config import GPTConfig
from models.numerics import Numerics

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "geglu": jax.nn.gelu,
    "swiglu": jax.nn.silu,
}
"""By ``GPTConfig.feed_forward``; GELU is its tanh form."""


def uniform(deviation: float):
    """An initializer with equal bits on every device: uniform, centred on 0.

    Normal draws pass through erfinv, whose last bits depend on the compiler's choices;
    these are random bits, one exact subtraction and one rounded product. They are drawn
    in float32 also for float64 parameters, so that both start from one model.

    Args:
        deviation: Standard deviation.
    """
    width = 2 * deviation * math.sqrt(3)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        draw = jax.random.uniform(key, shape, jnp.float32)
        return ((draw - 0.5) * width).astype(dtype)

    return init


def recomputed(function: Callable, **options) -> Callable:
    """Keeps the function's inputs for the backward pass and nothing from inside it.

    Meant for what is cheap to do again and expensive to keep: a norm's float32 copies
    of the stream, the six arrays inside a GELU, attention's L * L weights. It halves
    the residuals and is faster, also on a CPU, since memory is the limit there.

    The compiler must not notice that it is the same again (``prevent_cse``): where
    blocks are no loop, it would keep what is computed first.
    """
    return jax.checkpoint(function, **options)


def rows_from(table_LD: jax.Array, start: jax.Array | None, length: int) -> jax.Array:
    """Rows of a table of positions, from ``start`` on; None: from the first."""
    if start is None:
        return table_LD[:length]
    return jax.lax.dynamic_slice_in_dim(table_LD, start, length)


class _Norm:
    """A norm in the parameter dtype, with its result in the compute dtype."""

    def __init__(
        self,
        width: int,
        config: GPTConfig,
        numerics: Numerics,
        rngs: nnx.Rngs,
        **options,
    ):
        super().__init__(
            width,
            epsilon=config.norm_epsilon,
            dtype=numerics.parameter,
            param_dtype=numerics.parameter,
            rngs=rngs,
            **options,
        )
        self.numerics = numerics

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = super().__call__
        return recomputed(lambda x: normed(x).astype(self.numerics.compute))(x)


class RMSNorm(_Norm, nnx.RMSNorm):
    """``scale`` [D]."""


class LayerNorm(_Norm, nnx.LayerNorm):
    """``scale`` and ``bias`` [D]."""

    def __init__(self, *args):
        # The fast way, E[x^2] - E[x]^2, loses digits where the mean is large.
        super().__init__(*args, use_fast_variance=False)


def make_norm(
    width: int, config: GPTConfig, numerics: Numerics, rngs: nnx.Rngs
) -> RMSNorm | LayerNorm:
    """The kind of norm that the model has everywhere."""
    kind = {"rms": RMSNorm, "layer": LayerNorm}[config.norm]
    return kind(width, config, numerics, rngs)


class Matrix(nnx.Linear):
    """Product with a matrix ``kernel`` [inputs, outputs], in the compute dtype.

    Its deviation is ``scale / sqrt(inputs)``, so that a product starts as large as what
    goes in. A fixed 0.02, as in GPT-2, is the same thing at a width of 2,500; at 128 an
    Adam step is so large beside it that two runs that differ in the last bit were a
    thousand times further apart after 50 steps, and 0.35 nats behind.

    Args:
        bias: Whether a ``bias`` [outputs] is added.
        bias_scale: Its deviation is ``bias_scale / sqrt(inputs)``; 0: it starts at 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        numerics: Numerics,
        rngs: nnx.Rngs,
        scale: float = 1.0,
        bias: bool = False,
        bias_scale: float = 0.0,
    ):
        super().__init__(
            inputs,
            outputs,
            use_bias=bias,
            dtype=numerics.compute,
            param_dtype=numerics.parameter,
            kernel_init=uniform(scale / math.sqrt(inputs)),
            bias_init=uniform(bias_scale / math.sqrt(inputs)) if bias_scale else zeros,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Flattens all axes but the last.

        With more of them, the product for the kernel's gradient comes out transposed,
        and on a CPU it takes twice as long.
        """
        y = super().__call__(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def wide_product(x_ND: jax.Array, kernel_DV: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Product whose result is not rounded to the dtype of its factors.

    Its own derivative, because jax's multiplies the float32 gradient with bfloat16
    factors: on an H200 that makes the whole last stage a third slower.
    """
    return jnp.matmul(x_ND, kernel_DV, preferred_element_type=dtype)


def _wide_product_forward(x_ND, kernel_DV, dtype):
    return wide_product(x_ND, kernel_DV, dtype), (x_ND, kernel_DV)


def _wide_product_backward(dtype, factors, grad_NV):
    x_ND, kernel_DV = factors
    grad_NV = grad_NV.astype(x_ND.dtype)
    return grad_NV @ kernel_DV.T, x_ND.T @ grad_NV


wide_product.defvjp(_wide_product_forward, _wide_product_backward)


def residual_scale(config: GPTConfig) -> float:
    """Scale of what writes into the residual stream (GPT-2, section 2.3).

    The stream sums two such outputs for each time that a block is applied, N in all, so
    each is scaled by 1 / sqrt(2 N).
    """
    return 1 / math.sqrt(2 * config.num_layers * config.block_repeats)
