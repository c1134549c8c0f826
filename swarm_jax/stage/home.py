"""Where a stage's parameters and optimizer state are, and where they are updated.

On the device, or in main memory. There, the host computes the update, and the device
holds no more than the weights, those of the step before, and the gradient sum: of 18
bytes per parameter (AdamW, bfloat16 weights) 12 are the host's. A gradient that was
reduced with others comes over the network, so that each update moves only the new
weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding


@dataclass(frozen=True, slots=True)
class Home:
    """Attributes:
    host: The host as a device of jax; None: all is on what serves.
    """

    host: jax.Device | None = None

    def make(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What ``function`` makes, at home; on its way it takes no other memory."""
        if self.host is None:
            return function(*arguments)
        with jax.default_device(self.host):
            return jax.device_put(function(*arguments), self.host)

    def copy(self, array: np.ndarray) -> jax.Array:
        """``jax.device_put`` shares aligned memory on CPU, with may_alias=False too."""
        return jnp.array(array, copy=True, device=self.host)

    def lend(self, tree: Any) -> Any:
        """On the device that serves; without a copy if it is there."""
        if self.host is None:
            return tree
        return jax.device_put(tree, jax.local_devices()[0])

    def shapes(self, tree: Any) -> Any:
        """Of what is at home, for programs that are compiled ahead."""
        return tree if self.host is None else _placed(tree, self.host)

    def lent_shapes(self, tree: Any) -> Any:
        """Of what was lent, and of what programs make of it.

        It is bound to its device, and programs for what is not would be others.
        """
        return tree if self.host is None else _placed(tree, jax.local_devices()[0])


def optimizer_home(offload: bool) -> Home:
    """Main memory if it is asked for and is not the device's own."""
    if not offload or jax.default_backend() == "cpu":
        return Home()
    return Home(jax.local_devices(backend="cpu")[0])


def _placed(tree: Any, device: jax.Device) -> Any:
    sharding = SingleDeviceSharding(device)
    return jax.tree.map(lambda leaf: leaf.update(sharding=sharding), tree)
