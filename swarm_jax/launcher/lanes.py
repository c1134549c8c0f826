"""One direction of a shaped link: bytes pass one after the other, at a rate."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lane:
    """Books bytes in the order in which they ask; knows no clock.

    Attributes:
        free_s: When all that was booked is through.
    """

    free_s: float = 0.0

    def book(self, num_bytes: int, ready_s: float, bits_per_s: float) -> float:
        """When the last of these bytes is through, if they are there at ``ready_s``."""
        self.free_s = max(self.free_s, ready_s) + 8 * num_bytes / bits_per_s
        return self.free_s
