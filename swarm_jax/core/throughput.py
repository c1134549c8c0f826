"""Averages of measured throughput: over time, and over peers."""


class ThroughputAverage:
    """Exponential moving average of seconds per token, corrected for its start.

    Seconds per token are averaged, not tokens per second, so that one very fast answer
    does not hide many slow ones. Bias correction as in Adam (Kingma & Ba 2015, 3).

    Args:
        smoothing: Weight of a new measurement; 0.1 as in SWARM (appendix on routing).
    """

    def __init__(self, smoothing: float = 0.1):
        self._smoothing = smoothing
        self._average = 0.0
        self._weight = 0.0

    def update(self, tokens: int, seconds: float) -> None:
        keep = 1.0 - self._smoothing
        self._average = keep * self._average + self._smoothing * seconds / tokens
        self._weight = keep * self._weight + self._smoothing

    @property
    def tokens_per_s(self) -> float | None:
        """None before the first measurement."""
        return self._weight / self._average if self._average else None


class MeanRate:
    """Mean of the throughputs of many peers, kept up to date without looking at all."""

    def __init__(self):
        self._total = 0.0
        self._count = 0

    def add(self, throughput: ThroughputAverage) -> None:
        """Does nothing with one that has no measurement yet."""
        if (rate := throughput.tokens_per_s) is not None:
            self._total += rate
            self._count += 1

    def discard(self, throughput: ThroughputAverage) -> None:
        """To be called before a throughput changes, or goes."""
        if (rate := throughput.tokens_per_s) is not None:
            self._total -= rate
            self._count -= 1

    @property
    def mean(self) -> float | None:
        return self._total / self._count if self._count else None
