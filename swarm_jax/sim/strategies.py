"""Who moves between stages, and where newcomers go: what ``replay.py`` compares."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from swarm_jax.config import RebalancingConfig
from swarm_jax.core.capacity import Stages
from swarm_jax.core.placement import place
from swarm_jax.core.rebalancing import (
    Move,
    most_loaded,
    move_by_queue,
    rebalance,
    rescue,
)

Newcomer = Callable[[Stages, np.random.Generator], int]
"""The stage of a new machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
    """Asked for decisions with the directory's records.

    Attributes:
        newcomer: Asked for the stage of a new machine.
        period_s: How often ``decide`` is asked, with the number of the period.
        rescue: Asked whenever a stage has come down to one peer.
    """

    name: str
    newcomer: Newcomer
    period_s: float = math.inf
    decide: Callable[[Stages, int], Sequence[Move]] = lambda stages, turn: ()
    rescue: Callable[[Stages], Sequence[Move]] = lambda stages: ()


def anywhere(stages: Stages, chance: np.random.Generator) -> int:
    """Any stage."""
    return int(chance.integers(len(stages)))


def where_most_loaded(stages: Stages, chance: np.random.Generator) -> int:
    """As the paper's algorithm has it."""
    return most_loaded(stages)


def where_needed(stages: Stages, chance: np.random.Generator) -> int:
    """As a live server without ``--stage`` does, in stages of equal work."""
    rates = [[record.tokens_per_s for record in peers.values()] for peers in stages]
    return place(rates, ["new"])["new"]


def without() -> Strategy:
    """Nobody moves."""
    return Strategy(name="none", newcomer=anywhere)


def by_queue(period_s: float, newcomer: Newcomer = anywhere) -> Strategy:
    """The paper's: one move per period."""

    def decide(stages: Stages, turn: int) -> Sequence[Move]:
        move = move_by_queue(stages)
        return [move] if move else []

    return Strategy(
        name=f"T={period_s:.0f}", newcomer=newcomer, period_s=period_s, decide=decide
    )


def by_gain(rules: RebalancingConfig, newcomer: Newcomer = anywhere) -> Strategy:
    """Ours."""
    return Strategy(
        name="ours",
        newcomer=newcomer,
        period_s=rules.period_s,
        decide=lambda stages, turn: rebalance(stages, rules, turn=turn),
        rescue=lambda stages: rescue(stages, rules),
    )
