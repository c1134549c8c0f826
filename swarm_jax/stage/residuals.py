"""Which microbatches' residuals stay on the device.

A backward pass from residuals is a third faster than one that computes forward again,
but residuals are most of the memory that a microbatch takes. So there is a budget. Each
microbatch takes its part when its forward starts, and gives it back when its backward
does, or when it is dropped. One that finds no part left keeps its input, encoded and on
the host, as it came. However many are in flight, they take no more memory than that.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(slots=True, eq=False, weakref_slot=True)
class Kept:
    """What backward needs of one microbatch.

    Attributes:
        weights: Those of its forward: backward must see the same.
        x: Encoded input on the host if it is computed again, else empty.
        is_recomputed: Whether it is.
        residuals: Else they are here, until backward takes them.
    """

    weights: Any
    x: tuple[np.ndarray, ...]
    is_recomputed: bool
    residuals: Any = None


class ResidualBudget:
    """Decides in the thread that launches programs; a ``Kept`` may die in any.

    Args:
        microbatches: How many may have residuals at once; None: as many as come.
    """

    def __init__(self, microbatches: int | None = None):
        self.microbatches = microbatches
        self._holders: weakref.WeakSet[Kept] = weakref.WeakSet()
        self._counts = {"residuals_kept": 0, "residuals_recomputed": 0}
        self._reported = dict(self._counts)

    def admit(self, weights: Any, x: Sequence[np.ndarray]) -> Kept:
        """Decides for one microbatch whose forward is about to start."""
        if self.microbatches is not None and len(self._holders) >= self.microbatches:
            self._counts["residuals_recomputed"] += 1
            return Kept(weights, tuple(x), is_recomputed=True)
        self._counts["residuals_kept"] += 1
        kept = Kept(weights, (), is_recomputed=False)
        self._holders.add(kept)
        return kept

    def take(self, kept: Kept) -> Any:
        """The residuals, for the last time: the next microbatch may have their place.

        The device starts that one after the backward pass that they are taken for.
        """
        self._holders.discard(kept)
        residuals, kept.residuals = kept.residuals, None
        return residuals

    def take_record(self) -> dict[str, int]:
        """``residuals_kept`` and ``residuals_recomputed`` since the last call."""
        counts = dict(self._counts)
        record = {name: n - self._reported[name] for name, n in counts.items()}
        self._reported = counts
        return record
