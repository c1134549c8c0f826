"""A stage's device with delayed updates: two sums, three sets of weights."""

import asyncio
from functools import partial

import numpy as np
import pytest

from swarm_jax.errors import Abandoned
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.threaded import ThreadedCompute
from tests.stage.test_compute import Count, as_bytes


class EarlyCount(Count):
    is_early = True


class StepCount(Count):
    is_early = False


@pytest.fixture
def make_delayed(make_stages):
    """``make(kind, dtype)``: the first stage, alone, with delayed updates."""
    made = []

    def make(kind=InlineCompute, dtype="float32"):
        stage = make_stages((4,), dtype)[0]
        init = partial(stage.programs.copy, stage.params)
        made.append(kind(stage.programs, init, delayed_updates=True))
        return made[-1]

    yield make
    for compute in made:
        compute.close()


async def run_alone(compute, microbatch, count=None, previous=0):
    inputs_BL, targets_BL = microbatch
    back = await compute.loss_backward(
        (inputs_BL,), targets_BL, count=count, order=0, previous=previous
    )
    return back.loss_sum


async def update(compute):
    reduced = await compute.load_reduced(await compute.gradient_sum(0.1))
    await compute.apply(reduced.squared_norm**0.5)


@pytest.mark.parametrize("kind", [InlineCompute, ThreadedCompute])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_delayed_updates_keep_two_older_sets_of_weights(
    kind, dtype, make_delayed, make_microbatch
):
    async def scenario():
        compute, batch = make_delayed(kind, dtype), make_microbatch(5)
        losses = [await run_alone(compute, batch)]
        for step in range(3):
            await run_alone(compute, make_microbatch(step), StepCount(), previous=1)
            await update(compute)
            losses.insert(0, await run_alone(compute, batch))
            older = [await run_alone(compute, batch, previous=p) for p in (0, 1, 2)]
            assert older == (losses + losses[-1:])[:3]
        assert len(set(losses)) == 4
        compute.forget_previous()
        assert await run_alone(compute, batch, previous=1) == losses[1]
        for gone in (2, 3, -1):
            with pytest.raises(Abandoned):
                await run_alone(compute, batch, previous=gone)

    asyncio.run(scenario())


def test_what_was_counted_early_is_the_sum_of_the_next_step(
    make_delayed, make_microbatch
):
    async def scenario():
        one, other = make_delayed(), make_delayed()
        for compute in (one, other):
            await run_alone(compute, make_microbatch(0), StepCount(), previous=1)
        await run_alone(one, make_microbatch(1), EarlyCount())
        assert as_bytes(await one.gradient_sum(1.0)) == as_bytes(
            await other.gradient_sum(1.0)
        )
        for compute in (one, other):
            await update(compute)
        await run_alone(other, make_microbatch(1), StepCount(), previous=1)
        expected = as_bytes(await other.gradient_sum(1.0))
        assert as_bytes(await one.gradient_sum(1.0)) == expected
        for compute in (one, other):
            await run_alone(compute, make_microbatch(2), EarlyCount())
            await compute.skip()
        expected = as_bytes(await other.gradient_sum(1.0))
        assert as_bytes(await one.gradient_sum(1.0)) == expected
        now, before = [
            await run_alone(one, make_microbatch(5), previous=p) for p in (0, 1)
        ]
        assert now == before
        assert any(np.any(leaf) for leaf in await one.gradient_sum(1.0))
        await one.clear()
        assert not any(np.any(leaf) for leaf in await one.gradient_sum(1.0))

    asyncio.run(scenario())


def test_a_microbatch_keeps_its_weights_over_an_update(make_delayed, make_microbatch):
    """It is asked for before the update, which overtakes it: the device was busy."""

    async def scenario():
        compute, batch = make_delayed(), make_microbatch(5)
        before = await run_alone(compute, batch)
        await run_alone(compute, make_microbatch(0), StepCount(), previous=1)
        norm = await compute.reduce_alone(0.1)
        other, running, updating = (
            asyncio.ensure_future(work)
            for work in (
                run_alone(compute, make_microbatch(1)),
                run_alone(compute, batch),
                compute.apply(norm**0.5),
            )
        )
        await other
        await updating
        assert not running.done()
        assert await running == before != await run_alone(compute, batch)

    asyncio.run(scenario())


def test_so_does_one_that_is_only_looked_at(make_delayed, make_microbatch):
    """A guest's: what it is told must be of one step's parameters."""

    async def scenario():
        compute, (inputs_BL, targets_BL) = make_delayed(), make_microbatch(5)

        def loss():
            return compute.loss((inputs_BL,), targets_BL, order=9)

        before = await loss()
        await run_alone(compute, make_microbatch(0), StepCount(), previous=1)
        norm = await compute.reduce_alone(0.1)
        work = run_alone(compute, make_microbatch(1)), loss(), compute.apply(norm**0.5)
        _, found, _ = await asyncio.gather(*work)
        assert found == before != await loss()

    asyncio.run(scenario())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_before_go_with_the_state(dtype, make_delayed, make_microbatch):
    async def scenario():
        one, other = make_delayed(dtype=dtype), make_delayed(dtype=dtype)
        for step in range(2):
            await run_alone(one, make_microbatch(step), StepCount(), previous=1)
            await update(one)
        await other.load_state(await one.state())
        for previous in (0, 1):
            losses = [
                await run_alone(c, make_microbatch(5), previous=previous)
                for c in (one, other)
            ]
            assert losses[0] == losses[1]
        with pytest.raises(Abandoned):
            await run_alone(other, make_microbatch(5), previous=2)
        assert as_bytes(await one.state()) == as_bytes(await other.state())
        assert len(one.state_structure) == 3

    asyncio.run(scenario())
