"""What a stage does with the gradient of a table that another stage has, too."""

import asyncio

import numpy as np
import pytest

from models.config import GPTConfig
from scripts.wiring import make_compute
from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import Abandoned


@pytest.fixture(scope="module")
def ends():
    model = GPTConfig(
        num_layers=2,
        model_dim=8,
        num_heads=2,
        ffn_dim=16,
        vocab_size=260,
        sequence_length=4,
        tied_head=True,
    )
    config = ExperimentConfig(run_id="test", steps=3, model=model)
    config.optimizer.warmup_steps = 0
    config.swarm.num_stages = 2
    return [make_compute(config, stage, inline=True) for stage in range(2)]


def ones(compute):
    return [np.ones(shape, name) for name, shape in compute.sum_specs]


def test_both_ends_know_their_copy(ends):
    first, last = (compute.sum_specs[compute.tied_leaf] for compute in ends)
    assert first == last == ("float32", (260, 8))
    first, last = (compute.params for compute in ends)
    np.testing.assert_array_equal(
        first["embed"]["embedding"], last["tied"]["embedding"]
    )


def test_it_has_a_scale_of_its_own(ends):
    async def scaled(compute):
        await compute.clear()
        assert await compute.add_to_sum(ones(compute))
        return await compute.gradient_sum(0.5, 0.25)

    for compute in ends:
        for index, array in enumerate(asyncio.run(scaled(compute))):
            assert np.all(array == (0.25 if index == compute.tied_leaf else 0.5))


def test_only_the_first_stage_counts_it_in_the_norm(ends):
    sizes = [sum(a.size for a in ones(compute)) for compute in ends]
    found = [asyncio.run(compute.load_reduced(ones(compute))) for compute in ends]
    assert [reduced.squared_norm for reduced in found] == [sizes[0], sizes[1] - 260 * 8]


def test_what_was_applied_is_kept_as_long_as_the_parameters_before(ends):
    async def scenario(compute):
        reduced = ones(compute)
        reduced[compute.tied_leaf] *= 3
        await compute.load_reduced(reduced)
        await compute.apply(1.0)
        assert np.all(await compute.previous_tied() == 3)
        compute.forget_previous()
        with pytest.raises(Abandoned):
            await compute.previous_tied()
        await compute.load_reduced(reduced)
        await compute.apply(1.0)
        await compute.reset()
        with pytest.raises(Abandoned):
            await compute.previous_tied()

    for compute in ends:
        asyncio.run(scenario(compute))
