"""Moving average of measured throughput."""


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
