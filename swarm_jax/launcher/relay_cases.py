"""What ``scripts.benchmark relay`` measures, by name."""

from collections.abc import Sequence
from dataclasses import dataclass

from swarm_jax.errors import ConfigError

WIRES = ("NONE", "FLOAT16", "MEANSTD_16BIT")
"""Of hivemind: those that work with numpy 2.4. The fastest is what we compare with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One experiment on one machine.

    Attributes:
        name: Device, width, stages, and how peers meet.
        cards: GPUs to use; 0 for the CPU.
        overrides: What it changes of the experiment that the benchmark is given.
    """

    name: str
    cards: int
    overrides: tuple[str, ...] = ()


def _width(width: int) -> tuple[str, ...]:
    return (
        f"--config.model.model_dim={width}",
        f"--config.model.num_heads={width // 128}",
        f"--config.model.ffn_dim={4 * width}",
    )


_CPU = (
    *_width(512),
    "--config.model.num_layers=4",
    "--config.model.sequence_length=256",
    "--config.swarm.microbatch_size=2",
    "--config.validation.sequences=2",
    "--config.data.target_batch_size=128",
)

CASES = (
    Case(name="cpu_w512_s2", cards=0, overrides=_CPU),
    Case(name="gpu1_w4096_s2", cards=1),
    Case(
        name="gpu1_w1024_s2",
        cards=1,
        overrides=(*_width(1024), "--config.data.target_batch_size=2048"),
    ),
    Case(
        name="gpu2_w4096_s2_p2pd",
        cards=2,
        overrides=("--config.tuning.same_host=False",),
    ),
    Case(
        name="gpu2_w4096_s2_samehost",
        cards=2,
        overrides=("--config.tuning.same_host=True",),
    ),
)


def choose(names: Sequence[str], cards: int) -> list[Case]:
    """The named cases; without names, all that fit a machine with so many GPUs.

    Raises:
        ConfigError: There is no such case, or it needs more GPUs.
    """
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            raise ConfigError(f"--cases {name}: use some of {', '.join(known)}")
        if known[name].cards > cards or (cards and not known[name].cards):
            raise ConfigError(
                f"--cases {name} does not run on this device with {cards} GPUs: use "
                "--device and a machine that fit"
            )
    if names:
        return [known[name] for name in names]
    return [case for case in CASES if 0 < case.cards <= cards or case.cards == cards]
