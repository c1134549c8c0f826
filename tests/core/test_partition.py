"""Partition of layers into stages, against all cuts there are."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from swarm_jax.core.partition import StageLayers, partition_layers


def all_cuts(num_layers: int, num_stages: int):
    """Every way to give each stage at least one layer."""
    for cuts in combinations(range(1, num_layers), num_stages - 1):
        yield tuple(b - a for a, b in pairwise((0, *cuts, num_layers)))


def costs(layers, block, embedding, head):
    found = [block * count for count in layers]
    found[0] += embedding
    found[-1] += head
    return sorted(found, reverse=True)


@st.composite
def models(draw):
    num_layers = draw(st.integers(1, 9))
    flops = st.integers(0, 60)
    return {
        "block_flops": draw(st.integers(1, 20)),
        "num_layers": num_layers,
        "num_stages": draw(st.integers(1, num_layers)),
        "embedding_flops": draw(flops),
        "head_flops": draw(flops),
    }


@given(models())
def test_no_cut_is_better(model):
    stages = partition_layers(**model)
    found = tuple(stage.num_layers for stage in stages)

    def rank(layers):
        flops = (model["block_flops"], model["embedding_flops"], model["head_flops"])
        return costs(layers, *flops), layers

    every_cut = all_cuts(model["num_layers"], model["num_stages"])
    assert rank(found) == min(map(rank, every_cut))


@given(models())
def test_stages_are_contiguous_and_whole(model):
    stages = partition_layers(**model)
    layers = [
        first + index for first, num_layers in stages for index in range(num_layers)
    ]
    assert layers == list(range(model["num_layers"]))
    assert all(stage.num_layers >= 1 for stage in stages)
    assert len(stages) == model["num_stages"]


def test_a_heavy_head_leaves_the_last_stage_fewer_layers():
    stages = partition_layers(10, 7, 3, 0, 20)
    assert stages == (StageLayers(0, 3), StageLayers(3, 3), StageLayers(6, 1))


def test_stages_beside_the_costliest_are_balanced_too():
    stages = partition_layers(1, 5, 3, 0, 1000)
    assert [stage.num_layers for stage in stages] == [2, 2, 1]


def test_a_given_split_is_taken_as_it_is():
    stages = partition_layers(1, 6, 3, 0, 0, layers_per_stage=(1, 4, 1))
    assert stages == (StageLayers(0, 1), StageLayers(1, 4), StageLayers(5, 1))


def test_many_layers_take_no_time():
    stages = partition_layers(3, 94, 32, 0, 7)
    assert [stage.num_layers for stage in stages] == [3] * 31 + [1]
