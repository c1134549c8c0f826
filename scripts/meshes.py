"""A peer's several devices: their mesh, and where a stage's arrays are on it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from models import sharding
from models.config import GPTConfig
from swarm_jax.launcher import mesh_option
from swarm_jax.launcher.mesh_option import MeshShape
from swarm_jax.stage.layout import Layout, make_layout


def own_mesh(shape: MeshShape) -> Mesh | None:
    """A mesh of all devices of this process; None for one device.

    Raises:
        ConfigError: It has more of them, or fewer.
    """
    devices = jax.local_devices()
    mesh_option.check_devices(shape, len(devices), jax.default_backend())
    return make_mesh(shape, devices)


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device]) -> Mesh | None:
    """A mesh of the first ``shape.devices`` of these; None for one device."""
    if shape.devices == 1:
        return None
    return Mesh(np.asarray(devices[: shape.devices]).reshape(shape), sharding.AXES)


def stage_layout(config: GPTConfig, shapes: Any, mesh: Mesh | None) -> Layout | None:
    """Where the arrays of a stage are; None for one device.

    Args:
        shapes: Of the stage's parameters.
    """
    if mesh is None:
        return None
    return make_layout(
        mesh,
        shapes,
        sharding.weight_specs(config, shapes, mesh),
        to_weights=functools.partial(sharding.group_heads, config, mesh),
        to_params=functools.partial(sharding.ungroup_heads, config, mesh),
    )
