"""Inputs of a fuzzer as little programs: they choose a good value and damage it.

Flipped bits of msgpack are mostly no msgpack. So an input names a template and where to
put what instead, and every byte of it counts.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack

MAX_DEPTH = 4
ODD = (
    *(None, True, False, 0, 1, 2, -1, 255, 2**31, 2**48, 2**62, 2**63 - 1, -(2**63)),
    *(0.0, -0.0, 0.5, 1e308, -1.0, math.inf, -math.inf, math.nan),
    *("", "x", "ONLINE", "x" * 300, "\x00", b"", b"d", b"\xff" * 20),
    *([], {}, [[]], [{}], {"": {}}, [0], [0, 0], [0, "x", 0], {"x": "x"}, [[0, 0.5]]),
)


class Program:
    """Reads an input byte by byte; zeros follow its end."""

    def __init__(self, data: bytes):
        self._data = data
        self._at = 0

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def take(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def steps(self, kinds: int) -> Iterator[int]:
        """Numbers below ``kinds`` until the input has ended."""
        while self._at < len(self._data):
            yield self.byte() % kinds

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def value(self, templates: Sequence[Any]) -> Any:
        """A template with up to three damages; the copy is deep."""
        value = templates[self.byte() % len(templates)]
        for _ in range(self.byte() % 4):
            value = self._damaged(value, 0)
        return value

    def _damaged(self, value: Any, depth: int) -> Any:
        choice = self.byte()
        if choice % 4 == 0 or depth == MAX_DEPTH or not isinstance(value, list | dict):
            return self._odd()
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return [self._odd()] if isinstance(value, list) else {"x": self._odd()}
        key = keys[self.byte() % len(keys)]
        copy = value.copy()
        if choice % 16 == 1:
            del copy[key]
        elif choice % 16 == 2 and isinstance(copy, list):
            copy.append(copy[key])
        elif choice % 16 == 2:
            copy[self.text()] = copy[key]
        else:
            copy[key] = self._damaged(copy[key], depth + 1)
        return copy

    def _odd(self) -> Any:
        choice = self.byte()
        if choice < 200:
            return ODD[choice % len(ODD)]
        if choice < 220:
            return int.from_bytes(self.take(choice % 8), "little", signed=True)
        if choice < 240:
            return self.text()
        try:
            return msgpack.unpackb(self.take(choice % 32), strict_map_key=False)
        except (ValueError, TypeError):
            return None

    def text(self) -> str:
        return self.take(self.byte() % 32).decode(errors="replace")


def packed(data: bytes, templates: Sequence[Any]) -> bytes:
    """msgpack that an input stands for: a damaged template, or itself."""
    program = Program(data)
    if program.byte() % 8 == 7:
        return program.rest()
    try:
        return msgpack.packb(program.value(templates))
    except (ValueError, OverflowError):
        return b""


def seeds(templates: Sequence[Any]) -> list[bytes]:
    """Inputs for ``packed`` that leave each template whole, or as it is packed."""
    whole = [bytes([0, number, 0]) for number in range(len(templates))]
    return whole + [b"\x07" + msgpack.packb(template) for template in templates]
