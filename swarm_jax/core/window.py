"""How many microbatches a sender keeps in flight: as many as throughput rewards.

The least window that fills a pipeline is its throughput times its round trip (the
bandwidth-delay product, in microbatches). Neither is known: both change with peers and
links, and a round trip that is measured under load contains its own queue. So the
window is found by climbing: it grows while throughput grows with it, and gives back
what earned nothing, which would only wait in queues and hold device memory.
"""

import math

FIRST = 4
STARTUP, STEP = 2.0, 1.25
"""Factors by which the window changes: until the first growth that earned nothing; and
from then on."""
WORTH = 0.2
"""Least share of proportional growth that a larger window must bring."""
MAX_FRUITLESS = 1
PATIENCE = 4
"""Measurements between two probes of a window that is thought right."""


class FixedWindow:
    """A window that stays as it is, whatever is answered."""

    def __init__(self, size: int):
        self.size = size

    def restart(self) -> None:
        pass

    def answered(self, now_s: float) -> None:
        pass


class Window:
    """A bound on microbatches in flight that follows the measured throughput.

    Throughput is measured over as many answers as the window is large, after as many
    that are let pass: they were sent while the window was another one.

    Args:
        limit: The largest it may be.
        first: What it starts with.

    Attributes:
        size: Microbatches that may be in flight, from 1 to ``limit``.
    """

    def __init__(self, limit: int, first: int = FIRST):
        self._limit = limit
        self.size = min(limit, first)
        self._factor = STARTUP
        self._compared: tuple[int, float] | None = None
        self._rested = 0
        self._probe_up = False
        self._fruitless = 0
        self._answers = 0
        self._since_s = 0.0

    def restart(self) -> None:
        """To be called when a feed begins: drops what the last one half measured.

        A size that is on trial and could not be measured in a whole feed is too large
        for feeds of this length, of which it needs a third, and is given up.
        """
        self._answers = 0
        self._fruitless += 1
        if self._compared is not None and self._fruitless > MAX_FRUITLESS:
            self.size, self._compared = self._compared[0], None
            self._factor, self._probe_up = STEP, False

    def answered(self, now_s: float) -> None:
        """An answer has come while the window was full."""
        self._answers += 1
        if self._answers == self.size:
            self._since_s = now_s
        if self._answers == 2 * self.size and now_s > self._since_s:
            rate = self.size / (now_s - self._since_s)
            self._answers = self._fruitless = 0
            self._measured(rate)

    def _measured(self, rate: float) -> None:
        if self._compared is None:
            self._rest_or_probe(rate)
            return
        (other, other_rate), self._compared = self._compared, None
        grew = self.size > other
        small, large = sorted([(other, other_rate), (self.size, rate)])
        gain = large[1] / small[1] - 1
        worth_it = gain >= WORTH * (large[0] / small[0] - 1)
        self._rested = 0
        if grew and not worth_it:
            self._factor = STEP
        if grew == worth_it:
            # Where it went was right: it goes on that way.
            self._probe_up = grew
            self._probe(rate)
        else:
            self.size, self._probe_up = other, not grew

    def _rest_or_probe(self, rate: float) -> None:
        self._rested += 1
        if self._factor == STARTUP:
            self._probe_up = True
            self._probe(rate)
        elif self._rested >= PATIENCE:
            self._rested = 0
            self._probe(rate)

    def _probe(self, rate: float) -> None:
        here = self.size
        if self._probe_up:
            self.size = min(self._limit, math.ceil(here * self._factor))
        else:
            self.size = max(1, math.floor(here / STEP))
        if self.size == here:
            self._factor, self._probe_up = STEP, not self._probe_up
        else:
            self._compared = here, rate
