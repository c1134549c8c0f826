"""Checks of single config fields; the error says what to use instead."""

from collections.abc import Sequence
from typing import Any

from swarm_jax.errors import ConfigError


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}: use one of {tuple(allowed)}")


def positive(name: str, value: float) -> None:
    if value <= 0:
        raise ConfigError(f"{name}={value}: use a positive number")


def at_least(name: str, value: float, minimum: float) -> None:
    if value < minimum:
        raise ConfigError(f"{name}={value}: use {minimum} or more")
