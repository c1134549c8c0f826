"""How the parts of an all-reduce travel: float32, float16, or blockwise int8.

A part is rounded on its way to its reducer, and the mean once more on its way back;
the reducer itself takes the rounded mean, so that all members have the same bytes.
Nothing is fed back into the next step.

* float16: 2 bytes a value. Relative error at most 2^-11; values under 6e-8 are lost,
  those over 65504 become infinite, as a gradient that diverges is.
* int8: 1.016 bytes a value. Codes from -127 to 127 times the scale of a block of 256
  values: an error is at most 1/254 of the block's largest magnitude.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from swarm_jax.net.protocols import ArraySpec, spec_of

BLOCK = 256
LARGEST_CODE = 127

# Shape suffixes: N values of a part, K its blocks, P values of a block.


@dataclass(frozen=True, slots=True)
class PartCodec:
    """Attributes:
    encode: ``encode(part_N) -> arrays``; float32 in.
    decode: ``decode(arrays) -> part_N``; float32 out.
    specs: dtype name and shape of each array, for a number of values.
    """

    encode: Callable[[np.ndarray], list[np.ndarray]]
    decode: Callable[[Sequence[np.ndarray]], np.ndarray]
    specs: Callable[[int], list[ArraySpec]]

    def fits(self, specs: Sequence[ArraySpec]) -> bool:
        """Whether arrays of these specs are a part."""
        if not specs or len(specs[0][1]) != 1:
            return False
        return list(specs) == self.specs(specs[0][1][0])

    def is_part(self, arrays: Sequence[np.ndarray], size: int) -> bool:
        """Whether these arrays are a part of so many values."""
        return [spec_of(array) for array in arrays] == self.specs(size)


def _to_float16(part_N: np.ndarray) -> list[np.ndarray]:
    with np.errstate(over="ignore"):
        return [part_N.astype(np.float16)]


def _to_int8(part_N: np.ndarray) -> list[np.ndarray]:
    part_KP = _blocks(part_N)
    scale_K = np.maximum(part_KP.max(axis=1), -part_KP.min(axis=1))
    scale_K /= np.float32(LARGEST_CODE)
    is_usable_K = np.isfinite(scale_K) & (scale_K > 0)
    codes_KP = part_KP / np.where(is_usable_K, scale_K, np.float32(1))[:, None]
    # Where a scale is not finite, all of the block becomes so: by it times 0.
    codes_KP[~is_usable_K] = 0
    np.rint(codes_KP, out=codes_KP)
    np.clip(codes_KP, -LARGEST_CODE, LARGEST_CODE, out=codes_KP)
    return [codes_KP.astype(np.int8).reshape(-1)[: part_N.size], scale_K]


def _from_int8(arrays: Sequence[np.ndarray]) -> np.ndarray:
    codes_N, scale_K = arrays
    part_KP = _blocks(codes_N).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        part_KP *= scale_K[:, None]
    return part_KP.reshape(-1)[: codes_N.size]


def _blocks(values_N: np.ndarray) -> np.ndarray:
    """Of the same dtype; zeros fill the last one."""
    missing = -values_N.size % BLOCK
    if missing:
        values_N = np.concatenate([values_N, np.zeros(missing, values_N.dtype)])
    return values_N.reshape(-1, BLOCK)


def _num_blocks(size: int) -> int:
    return -(-size // BLOCK)


PART_CODECS = {
    "float32": PartCodec(
        lambda part_N: [part_N],
        lambda arrays: arrays[0],
        lambda size: [("float32", (size,))],
    ),
    "float16": PartCodec(
        _to_float16,
        lambda arrays: arrays[0].astype(np.float32),
        lambda size: [("float16", (size,))],
    ),
    "int8": PartCodec(
        _to_int8,
        _from_int8,
        lambda size: [("int8", (size,)), ("float32", (_num_blocks(size),))],
    ),
}
"""By the name of the wire, ``swarm.allreduce_wire``."""
