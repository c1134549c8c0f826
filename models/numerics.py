"""In which dtypes, and with which attention kernel, this process computes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from models.config import GPTConfig


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a device computes: frozen, because modules keep it as a static attribute.

    Attributes:
        compute: dtype of matrix products and of the residual stream.
        parameter: dtype of parameters, norms, softmax and logits.
        flash: Whether attention takes cuDNN's fused kernel.
        mesh: What this process computes on if it is more than one device.
    """

    compute: DTypeLike
    parameter: DTypeLike
    flash: bool = False
    mesh: Mesh | None = None


def resolve_dtype(config: GPTConfig, platform: str | None = None) -> np.dtype:
    """The compute dtype on "cpu", "gpu" or "tpu"; by default, where this runs."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    if (platform or jax.default_backend()) in ("gpu", "tpu"):
        return jnp.dtype("bfloat16")
    return jnp.dtype(config.parameter_dtype)


def make_numerics(config: GPTConfig, mesh: Mesh | None = None) -> Numerics:
    """Chooses dtypes and the attention kernel for this process's device.

    Raises:
        ValueError: float64 is asked for while jax's 64-bit mode is off.
    """
    compute = resolve_dtype(config)
    parameter = jnp.dtype(config.parameter_dtype)
    if "float64" in (compute, parameter) and not jax.config.jax_enable_x64:
        raise ValueError(
            f"model.compute_dtype={config.compute_dtype!r} and model.parameter_dtype="
            f"{config.parameter_dtype!r} need 64-bit mode: set JAX_ENABLE_X64=1"
        )
    flash = compute == "bfloat16" and _has_flash_kernel(config)
    return Numerics(compute=compute, parameter=parameter, flash=flash, mesh=mesh)


def _has_flash_kernel(config: GPTConfig) -> bool:
    """cuDNN's kernel wants an NVIDIA card since Ampere and certain head sizes."""
    capability = getattr(jax.devices()[0], "compute_capability", "")
    if not capability[:1].isdigit() or float(capability) < 8:
        return False
    largest = 256 if float(capability) >= 9 else 128
    return config.head_dim % 8 == 0 and config.head_dim <= largest
