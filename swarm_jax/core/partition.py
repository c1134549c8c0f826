"""Which layers make up which stage."""

from collections.abc import Sequence
from typing import NamedTuple


class StageLayers(NamedTuple):
    """A contiguous run of blocks."""

    first_layer: int
    num_layers: int


def partition_layers(
    block_flops: int,
    num_layers: int,
    num_stages: int,
    embedding_flops: int,
    head_flops: int,
    layers_per_stage: Sequence[int] | None = None,
) -> tuple[StageLayers, ...]:
    """Cuts the model into stages, the costliest of which is as cheap as can be.

    A swarm is as fast as its slowest stage. Among cuts that are equal in that, the
    second costliest stage decides, and so on; then the one with fewer layers early on.

    Args:
        block_flops: Per token, as are the other two; any unit will do.
        num_layers: Blocks of the model.
        num_stages: At most ``num_layers``: every stage has a block.
        embedding_flops: Added to the first stage.
        head_flops: Added to the last stage.
        layers_per_stage: Blocks of each stage, if the balance is not wanted.

    Returns:
        The layers of each stage, in order.
    """
    if layers_per_stage is None:
        assert 1 <= num_stages <= num_layers, (num_stages, num_layers)
        extra_flops = [0] * num_stages
        extra_flops[0] += embedding_flops
        extra_flops[-1] += head_flops
        layers_per_stage = _balance(block_flops, num_layers, extra_flops)
    assert len(layers_per_stage) == num_stages and min(layers_per_stage) >= 1
    assert sum(layers_per_stage) == num_layers, (layers_per_stage, num_layers)
    firsts = (sum(layers_per_stage[:stage]) for stage in range(num_stages))
    return tuple(map(StageLayers, firsts, layers_per_stage))


class _Cut(NamedTuple):
    """A cut of the first layers into stages; the smallest tuple is the best cut.

    That order survives another stage at the end, so a best cut is made of best cuts:
    dynamic programming is exact.
    """

    costs: tuple[int, ...]
    """Of its stages, the largest first."""
    layers: tuple[int, ...]


def _balance(
    block_flops: int, num_layers: int, extra_flops: Sequence[int]
) -> tuple[int, ...]:
    best = {0: _Cut((), ())}
    for stage, extra in enumerate(extra_flops, start=1):
        ends = range(stage, num_layers - len(extra_flops) + stage + 1)
        best = {
            end: min(
                _extended(cut, end - start, block_flops * (end - start) + extra)
                for start, cut in best.items()
                if start < end
            )
            for end in ends
        }
    return best[num_layers].layers


def _extended(cut: _Cut, layers: int, cost: int) -> _Cut:
    costs = tuple(sorted((*cut.costs, cost), reverse=True))
    return _Cut(costs, (*cut.layers, layers))
