"""The learning rate as a number, without jax: who only records it starts sooner."""

import math
from typing import Protocol


class ScheduleSettings(Protocol):
    """Attributes:
    schedule: "cosine", "linear" or "constant".
    learning_rate: Peak, reached after ``warmup_steps``.
    final_learning_rate: At the last step, unless it is constant.
    """

    schedule: str
    learning_rate: float
    warmup_steps: int
    final_learning_rate: float


def learning_rate(settings: ScheduleSettings, count: int, steps: int) -> float:
    """Linear warm-up from 0, then a cosine or a line that ends at ``steps``, or a peak.

    Args:
        count: Updates already made.
        steps: Updates of the whole run.
    """
    peak, final = settings.learning_rate, settings.final_learning_rate
    if count < settings.warmup_steps:
        return peak * count / settings.warmup_steps
    if settings.schedule == "constant":
        return peak
    length = max(steps - settings.warmup_steps, 1)
    progress = min((count - settings.warmup_steps) / length, 1.0)
    if settings.schedule == "linear":
        return peak + (final - peak) * progress
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2
