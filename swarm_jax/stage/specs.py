"""What arrays look like, without their values."""

from collections.abc import Sequence
from typing import Any


def specs_of(arrays: Sequence[Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((array.dtype.name, tuple(array.shape)) for array in arrays)


def difference(given: tuple, expected: tuple) -> str:
    if len(given) != len(expected):
        return f"{len(given)} arrays instead of {len(expected)}"
    index = next(i for i, spec in enumerate(given) if spec != expected[i])
    return f"array {index} is {given[index]} instead of {expected[index]}"
