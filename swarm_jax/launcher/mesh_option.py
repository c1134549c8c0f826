"""The option that gives a peer several accelerators: ``--mesh data=1,model=2``."""

import argparse
from typing import NamedTuple

from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import ConfigError


class MeshShape(NamedTuple):
    """Devices along each axis of a peer's mesh.

    Attributes:
        data: Divides the sequences of a microbatch.
        model: Divides each block and the tables.
    """

    data: int = 1
    model: int = 1

    @property
    def devices(self) -> int:
        return self.data * self.model

    def __str__(self) -> str:
        return f"data={self.data},model={self.model}"


ONE_DEVICE = MeshShape()


def add_argument(parser: argparse._ActionsContainer, **changes) -> None:
    """Adds ``--mesh``."""
    options = {
        "type": _parse,
        "default": ONE_DEVICE,
        "metavar": "AXIS=N,...",
        "help": "several accelerators for a peer: data=N divides the sequences of a "
        "microbatch among them, model=N each block (default: one accelerator)",
    }
    parser.add_argument("--mesh", **options | changes)


def check(shape: MeshShape, config: ExperimentConfig) -> None:
    """Raises:
    ConfigError: A peer with this mesh cannot serve the experiment.
    """
    batch = config.swarm.microbatch_size
    if batch % shape.data:
        raise ConfigError(
            f"--mesh {shape}: a microbatch has {batch} sequences "
            f"(swarm.microbatch_size), which do not divide among {shape.data} devices. "
            f"Use --mesh model={shape.devices}"
        )
    if shape.devices > 1 and config.tuning.offload_optimizer:
        raise ConfigError(
            f"--mesh {shape}: tuning.offload_optimizer works with one accelerator. "
            "Leave it out for this swarm: on a mesh each device holds its share of "
            "the optimizer state"
        )
    if shape.devices > 1 and config.swarm.delayed_updates:
        raise ConfigError(
            f"--mesh {shape}: swarm.delayed_updates works with one accelerator a "
            "peer. Start a peer on each of them"
        )


def check_devices(shape: MeshShape, found: int, device: str) -> None:
    """Checks that the mesh takes the devices that there are.

    Args:
        found: Devices that this process sees.
        device: Their name in the message, as jax names platforms.

    Raises:
        ConfigError: It takes more, or leaves some idle.
    """
    if shape.devices in (1, found):
        return
    how = (
        f"set JAX_NUM_CPU_DEVICES={shape.devices}"
        if device == "cpu"
        else "name the cards for this process in CUDA_VISIBLE_DEVICES"
    )
    raise ConfigError(
        f"--mesh {shape} takes {shape.devices} devices, and this process sees {found} "
        f"({device}): change the mesh, or {how}"
    )


def _parse(text: str) -> MeshShape:
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in MeshShape._fields or axis in sizes or not size.isdigit():
            raise argparse.ArgumentTypeError(
                f"{part!r} is not data=N or model=N, each once"
            )
        if int(size) < 1:
            raise argparse.ArgumentTypeError(f"{part!r}: use 1 or more")
        sizes[axis] = int(size)
    return MeshShape(**sizes)
