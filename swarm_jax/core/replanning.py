"""Which layers and which peers make up each stage, for the fleet at hand.

A peer's *speed* here is its throughput if it held the whole model, in tokens per second
(any unit will do). A stage costs a share of the model's FLOPs; its throughput is the
sum of its peers' speeds over that share, and the swarm's is that of its slowest stage.
No swarm can do better than all speeds together: one stage that every peer holds.

Equally fast peers are one *kind*. Of few kinds and peers (``MAX_STATES`` ways to take
some of each) the plan is the best there is, to ``ROUNDING``. Of more it is what a climb
from several starts finds: no peer moved to the slowest stage, or changed for one there,
makes it better, or it is within ``ENOUGH`` of all speeds together. It may be short of
the best, by no more than ``shortfall``.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from swarm_jax.core.capacity import poorest
from swarm_jax.core.partition import partition_layers

MAX_STATES = 4096
ENOUGH = 1e-3
ROUNDING = 1e-9
_IMPOSSIBLE = -(1 << 40)

Counts = tuple[int, ...]
"""How many peers of each kind."""


@dataclass(frozen=True, slots=True)
class Costs:
    """FLOPs per token of the model's parts; any unit will do.

    Attributes:
        num_layers: Blocks of the model.
        embedding: Part of the first stage.
        head: Part of the last stage.
    """

    block: int
    num_layers: int
    embedding: int = 0
    head: int = 0

    def share(self, stage: int, num_stages: int, layers: int) -> float:
        """What a stage of so many blocks costs, as a share of the whole model."""
        cost = self.block * layers
        cost += self.embedding * (stage == 0) + self.head * (stage == num_stages - 1)
        whole = self.block * self.num_layers + self.embedding + self.head
        return cost / whole

    def shares(self, layers_per_stage: Sequence[int]) -> list[float]:
        num_stages = len(layers_per_stage)
        return [self.share(s, num_stages, n) for s, n in enumerate(layers_per_stage)]


@dataclass(frozen=True, slots=True)
class Plan:
    """Attributes:
    layers_per_stage: Blocks of each stage, in order.
    peers: Of each stage the names of its peers.
    throughputs: Of each stage, in the unit of the speeds.
    shortfall: The best plan for this number of stages has at most ``1 + shortfall``
        times this throughput; 0 if this is one.
    """

    layers_per_stage: tuple[int, ...]
    peers: tuple[tuple[str, ...], ...]
    throughputs: tuple[float, ...]
    shortfall: float

    @property
    def throughput(self) -> float:
        return min(self.throughputs)


def replan(
    costs: Costs,
    speeds: Mapping[str, float],
    num_stages: int,
    *,
    layers_per_stage: Sequence[int] | None = None,
    max_layers: int | None = None,
) -> Plan | None:
    """Partition and places of peers of the largest throughput.

    Equal for equal arguments, in whatever order the peers are given.

    Args:
        speeds: By peer, positive.
        layers_per_stage: Plans the places of peers alone.
        max_layers: No stage has more blocks; None: no limit.

    Returns:
        None where there is none: fewer peers or blocks than stages, or ``max_layers``
        too small.
    """
    if layers_per_stage is None:
        most = min(max_layers or costs.num_layers, costs.num_layers)
        ranges = [(1, most)] * num_stages
    else:
        ranges = [(layers, layers) for layers in layers_per_stage]
    fewest, most = (sum(side) for side in zip(*ranges, strict=True))
    if len(speeds) < num_stages or not fewest <= costs.num_layers <= most:
        return None
    search = _Search(costs, sorted(speeds.values()), ranges)
    groups, is_best = search.climbed(), False
    if search.num_states <= MAX_STATES:
        groups, is_best = search.best(groups), True
    layers, throughputs = search.layers(groups)
    shortfall = 0.0 if is_best else max(0.0, search.bound / min(throughputs) - 1)
    peers = _named(groups, search.kinds, speeds)
    return Plan(tuple(layers), peers, tuple(throughputs), shortfall)


def _named(
    groups: Sequence[Counts], kinds: Sequence[float], speeds: Mapping[str, float]
) -> tuple[tuple[str, ...], ...]:
    waiting = [sorted(p for p in speeds if speeds[p] == speed) for speed in kinds]
    queues = [iter(names) for names in waiting]
    return tuple(
        tuple(
            name
            for queue, count in zip(queues, group, strict=True)
            for name in itertools.islice(queue, count)
        )
        for group in groups
    )


class _Search:
    """Groups of peers, one for each stage; the layers follow from them.

    Args:
        speeds: Of all peers, ascending.
        ranges: Of each stage the fewest and the most blocks.

    Attributes:
        kinds: Speeds, each once.
        num_states: How many groups there are.
        bound: No groups have a larger throughput.
    """

    def __init__(
        self,
        costs: Costs,
        speeds: Sequence[float],
        ranges: Sequence[tuple[int, int]],
    ) -> None:
        self._num_layers = costs.num_layers
        self._ranges = ranges
        self.kinds = sorted(set(speeds))
        self.bound = math.fsum(speeds)
        self._all = tuple(speeds.count(speed) for speed in self.kinds)
        self.num_states = math.prod(count + 1 for count in self._all)
        self._shares = [
            [costs.share(stage, len(ranges), n) for n in range(most + 1)]
            for stage, (_, most) in enumerate(ranges)
        ]
        self._balanced = self._balance(costs)

    def layers(self, groups: Sequence[Counts]) -> tuple[list[int], list[float]]:
        """The best layers for these groups, and the throughput of each stage.

        One block after the other goes where it does least harm. More blocks make a
        stage slower, so that is exact.
        """
        sums = [self._speed(group) for group in groups]
        layers = [fewest for fewest, _ in self._ranges]

        def throughput(stage: int, more: int) -> float:
            return sums[stage] / self._shares[stage][layers[stage] + more]

        for _ in range(self._num_layers - sum(layers)):
            open_stages = [s for s, n in enumerate(layers) if n < self._ranges[s][1]]
            layers[max(open_stages, key=lambda s: throughput(s, 1))] += 1
        return layers, [throughput(stage, 0) for stage in range(len(layers))]

    def climbed(self) -> list[Counts]:
        """Groups that no peer more for the slowest stage makes better.

        Or some that are ``ENOUGH`` near to what no groups can exceed.
        """
        found: list[list[Counts]] = []
        for shares in self._starts():
            found.append(self._climb(self._spread(shares)))
            if self._is_enough(found[-1]):
                break
        return max(found, key=self._rank)

    def best(self, groups: list[Counts]) -> list[Counts]:
        """The best groups: from good ones to better ones until there are none."""
        while True:
            _, throughputs = self.layers(groups)
            better = self._above(min(throughputs) * (1 + ROUNDING))
            if better is None:
                return groups
            groups = better

    def _rank(self, groups: Sequence[Counts]) -> list[float]:
        return sorted(self.layers(groups)[1])

    def _balance(self, costs: Costs) -> list[int]:
        """Layers of equally strong stages, as far as the ranges allow."""
        balanced = partition_layers(
            costs.block,
            costs.num_layers,
            len(self._ranges),
            costs.embedding,
            costs.head,
        )
        pairs = zip(balanced, self._ranges, strict=True)
        return [min(max(b.num_layers, low), high) for b, (low, high) in pairs]

    def _starts(self) -> list[list[float]]:
        balanced = [
            shares[n] for shares, n in zip(self._shares, self._balanced, strict=True)
        ]
        # A large and a small stage side by side suit peers of few, different speeds.
        slope = range(1, len(balanced) + 1)
        return [balanced, [1.0] * len(balanced), [*slope], [*reversed(slope)]]

    def _spread(self, shares: Sequence[float]) -> list[Counts]:
        """The fastest first, each to the stage that has least for its share.

        Every stage gets one at least.
        """
        groups = [[0] * len(self.kinds) for _ in shares]
        sums = [0.0] * len(shares)
        left = sum(self._all)
        for kind in reversed(range(len(self.kinds))):
            for _ in range(self._all[kind]):
                empty = [s for s, total in enumerate(sums) if not total]
                stages = empty if left <= len(empty) else range(len(shares))
                stage = min(stages, key=lambda s: (sums[s] / shares[s], -shares[s], s))
                groups[stage][kind] += 1
                sums[stage] += self.kinds[kind]
                left -= 1
        return [tuple(group) for group in groups]

    def _climb(self, groups: list[Counts]) -> list[Counts]:
        while not self._is_enough(groups):
            rank = self._rank(groups)
            others = self._neighbours(groups)
            better = next((o for o in others if self._rank(o) > rank), None)
            if better is None:
                break
            groups = better
        return groups

    def _is_enough(self, groups: Sequence[Counts]) -> bool:
        return self._rank(groups)[0] * (1 + ENOUGH) >= self.bound

    def _neighbours(self, groups: list[Counts]) -> Iterator[list[Counts]]:
        """The slowest stage gets a peer of another, and may give a slower one."""
        target = poorest(self.layers(groups)[1])
        for source in range(len(groups)):
            if source == target:
                continue
            for gift in _kinds_in(groups[source]):
                if sum(groups[source]) > 1:
                    yield _changed(groups, source, target, gift, None)
                for back in _kinds_in(groups[target]):
                    if back < gift:
                        yield _changed(groups, source, target, gift, back)

    def _above(self, bound: float) -> list[Counts] | None:
        """Groups whose throughput is above ``bound``; None if there are none.

        ``reached[s][c]`` is the most blocks that the first ``s`` stages can hold with
        ``c`` peers, each of them faster than ``bound``.
        """
        shape = tuple(count + 1 for count in self._all)
        start = np.full(shape, _IMPOSSIBLE)
        start[(0,) * len(shape)] = 0
        reached = [start]
        held = [self._held(stage, bound) for stage in range(len(self._ranges))]
        for stage in held:
            best = np.full(shape, _IMPOSSIBLE)
            for group, layers in stage.items():
                after = best[tuple(slice(n, None) for n in group)]
                ends = zip(shape, group, strict=True)
                before = reached[-1][tuple(slice(0, end - n) for end, n in ends)]
                np.maximum(after, before + layers, out=after)
            reached.append(best)
        if reached[-1][self._all] < self._num_layers:
            return None
        return self._traced(reached, held)

    def _held(self, stage: int, bound: float) -> dict[Counts, int]:
        """Of each group the most blocks that it can hold and be faster than that."""
        fewest, most = self._ranges[stage]
        found = {}
        for group in itertools.product(*(range(count + 1) for count in self._all)):
            speed = self._speed(group)
            layers = most
            while layers >= fewest and speed <= bound * self._shares[stage][layers]:
                layers -= 1
            if layers >= fewest:
                found[group] = layers
        return found

    def _traced(
        self, reached: Sequence[np.ndarray], held: Sequence[Mapping[Counts, int]]
    ) -> list[Counts]:
        """How the last of ``reached`` was reached."""
        groups: list[Counts] = []
        left = self._all
        for before, stage in zip(reached[-2::-1], reversed(held), strict=True):
            total = reached[len(reached) - 1 - len(groups)][left]
            for group, layers in stage.items():
                rest = tuple(a - b for a, b in zip(left, group, strict=True))
                if min(rest) >= 0 and before[rest] + layers == total:
                    groups.append(group)
                    left = rest
                    break
        return groups[::-1]

    def _speed(self, group: Counts) -> float:
        return math.fsum(n * s for n, s in zip(group, self.kinds, strict=True))


def _kinds_in(group: Counts) -> list[int]:
    return [kind for kind, count in enumerate(group) if count]


def _changed(
    groups: Sequence[Counts], source: int, target: int, gift: int, back: int | None
) -> list[Counts]:
    changed = [list(group) for group in groups]
    for kind, giver, taker in ((gift, source, target), (back, target, source)):
        if kind is not None:
            changed[giver][kind] -= 1
            changed[taker][kind] += 1
    return [tuple(group) for group in changed]
