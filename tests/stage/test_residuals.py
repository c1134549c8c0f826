"""Residuals that are kept, and those that are computed again."""

import asyncio
import gc
import weakref
from functools import partial

import jax
import numpy as np
import pytest

from swarm_jax.errors import Abandoned
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.residuals import ResidualBudget
from swarm_jax.stage.threaded import ThreadedCompute


class Count:
    def __init__(self, allowed=True):
        self._allowed = allowed

    def start(self):
        return self._allowed

    def settle(self, finite, loss_sum):
        assert finite


@pytest.fixture
def make_pair(make_stages):
    """``make(microbatches, kind, dtype)``: a first and a last stage."""
    made = []

    def make(microbatches, kind=InlineCompute, dtype="float32"):
        pair = [
            kind(
                stage.programs,
                partial(stage.programs.copy, stage.params),
                residuals=ResidualBudget(microbatches),
            )
            for stage in make_stages((1, 3), dtype)
        ]
        made.extend(pair)
        return pair

    yield make
    for compute in made:
        compute.close()


@pytest.fixture
def without_gc():
    """What is dropped is gone at once, or this says that something holds it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def there_and_back(pair, microbatch, count, previous=False):
    """Returns what backward of the first stage gave."""
    first, last = pair
    inputs_BL, targets_BL = microbatch
    there = await first.forward((inputs_BL,), keep=True, order=0, previous=previous)
    back = await last.loss_backward(
        there.y, targets_BL, count=count, order=0, previous=previous
    )
    return await first.backward(there.residuals, back.grad_x, count=count, order=0)


async def close_step(pair):
    for compute in pair:
        await compute.load_reduced(await compute.gradient_sum(0.1))
        await compute.apply(1.0)


def as_bytes(arrays):
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays]


def assert_equal_but_for_rounding(found, expected):
    """The last bit: the compiler may join operations of the two passes."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in pairs:
        limit = 3e-7 * np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=limit)


@pytest.mark.parametrize("kind", [InlineCompute, ThreadedCompute])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recomputed_gradients_equal_kept_ones(dtype, kind, make_pair, make_microbatch):
    async def train(microbatches):
        pair = make_pair(microbatches, kind, dtype)
        for index in range(3):
            await there_and_back(pair, make_microbatch(index), Count())
        records = [compute.take_record() for compute in pair]
        return await pair[0].gradient_sum(1.0), records

    kept, kept_record = asyncio.run(train(None))
    recomputed, recomputed_record = asyncio.run(train(0))
    assert kept_record == [{"residuals_kept": 3, "residuals_recomputed": 0}, {}]
    assert recomputed_record == [{"residuals_kept": 0, "residuals_recomputed": 3}, {}]
    assert_equal_but_for_rounding(recomputed, kept)


def test_body_stages_recompute_from_what_came_over_the_wire(
    make_stages, make_activation
):
    body = make_stages((1, 2, 1), "bfloat16", ("int8", "int8"))[1].programs
    params = make_stages((1, 2, 1))[1].params
    weights = body.cast(params)
    codec_shapes = [np.zeros(shape, dtype) for dtype, shape in body.input_specs]
    generator = np.random.default_rng(0)
    x, grad_y = (
        tuple(
            generator.integers(-9, 9, array.shape).astype(array.dtype)
            if array.dtype == np.int8
            else np.full_like(array, 0.1)
            for array in codec_shapes
        )
        for _ in range(2)
    )
    _, residuals, _ = body.forward_keeping(weights, x)
    expected = body.backward_adding(weights, residuals, grad_y, body.zeros())
    found = body.recompute_backward_adding(weights, x, grad_y, body.zeros())
    assert any(np.any(leaf) for leaf in jax.tree.leaves(expected[2]))
    assert_equal_but_for_rounding(found, expected)
    plain = body.recompute_backward(weights, x, grad_y)
    assert_equal_but_for_rounding(plain[0], expected[0])


def test_more_than_fit_are_recomputed_until_one_is_back(make_pair, make_microbatch):
    async def scenario():
        first, _ = make_pair(2)
        inputs_BL, _ = make_microbatch(0)

        async def forward():
            return await first.forward((inputs_BL,), keep=True, order=0)

        held = [await forward() for _ in range(3)]
        assert [there.residuals.is_recomputed for there in held] == [0, 0, 1]
        for there in held[1:]:
            await first.backward(there.residuals, there.y, count=Count(), order=0)
        assert not (await forward()).residuals.is_recomputed
        assert first.take_record() == {"residuals_kept": 3, "residuals_recomputed": 1}
        assert first.take_record() == {"residuals_kept": 0, "residuals_recomputed": 0}

    asyncio.run(scenario())


def test_a_dropped_microbatch_gives_its_place_back(
    make_pair, make_microbatch, without_gc
):
    async def scenario():
        first, _ = make_pair(1, ThreadedCompute)
        inputs_BL, _ = make_microbatch(0)

        async def forward():
            return await first.forward((inputs_BL,), keep=True, order=0)

        async def kept_forward():
            """Soon: a thread that has delivered a result holds it a moment longer."""
            async with asyncio.timeout(20):
                while (there := await forward()).residuals.is_recomputed:
                    await asyncio.sleep(0.001)
            return there

        dropped = asyncio.ensure_future(forward())
        await asyncio.sleep(0)
        dropped.cancel()  # started already, so the device works it off
        await asyncio.gather(dropped, return_exceptions=True)
        await first.digest()
        del dropped
        there = await kept_forward()
        assert (await forward()).residuals.is_recomputed
        del there
        await kept_forward()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [InlineCompute, ThreadedCompute])
def test_an_abandoned_microbatch_gives_its_place_back(
    kind, make_pair, make_microbatch, without_gc
):
    async def scenario():
        first, _ = make_pair(1, kind)
        inputs_BL, _ = make_microbatch(0)

        async def relay():
            there = await first.forward((inputs_BL,), keep=True, order=0)
            residuals, count = there.residuals, Count(allowed=False)
            try:
                await first.backward(residuals, there.y, count=count, order=0)
            except Abandoned:
                return
            raise AssertionError

        await asyncio.ensure_future(relay())
        await first.digest()  # by then no thread holds on to the first forward
        there = await first.forward((inputs_BL,), keep=True, order=0)
        assert not there.residuals.is_recomputed

    asyncio.run(scenario())


def test_what_was_closed_holds_nothing_on_the_device(make_pair, make_microbatch):
    pair = make_pair(None, ThreadedCompute)

    async def scenario():
        await there_and_back(pair, make_microbatch(0), Count())
        await close_step(pair)

    asyncio.run(scenario())
    for compute in pair:
        held = [weakref.ref(leaf) for leaf in jax.tree.leaves(compute.params)]
        compute.close()
        assert held and not any(leaf() for leaf in held)


def test_a_refused_count_leaves_the_residuals_for_an_uncounted_pass(
    make_pair, make_microbatch
):
    async def scenario(microbatches):
        first, last = make_pair(microbatches)
        inputs_BL, targets_BL = make_microbatch(0)
        there = await first.forward((inputs_BL,), keep=True, order=0)
        back = await last.loss_backward(there.y, targets_BL, count=None, order=0)
        for count in (Count(allowed=False), None):
            try:
                result = await first.backward(
                    there.residuals, back.grad_x, count=count, order=0
                )
            except Abandoned:
                assert count is not None
        assert result.finite
        assert not any(array.any() for array in await first.gradient_sum(1.0))

    for microbatches in (None, 0):
        asyncio.run(scenario(microbatches))


def test_a_recomputed_replay_uses_the_weights_of_its_forward(
    make_pair, make_microbatch
):
    async def gradient(pair, previous):
        """The first stage's, from a forward whose weights go before backward comes."""
        first, last = pair
        inputs_BL, targets_BL = make_microbatch(5)
        there = await first.forward((inputs_BL,), keep=True, order=0, previous=previous)
        back = await last.loss_backward(
            there.y, targets_BL, count=None, order=0, previous=previous
        )
        first.forget_previous()
        await first.clear()
        await first.backward(there.residuals, back.grad_x, count=Count(), order=0)
        return as_bytes(await first.gradient_sum(1.0))

    async def scenario():
        pair = make_pair(0, dtype="bfloat16")
        before = await gradient(pair, previous=False)
        for compute in pair:
            await compute.clear()
        await there_and_back(pair, make_microbatch(0), Count())
        await close_step(pair)
        assert await gradient(pair, previous=True) == before
        assert await gradient(pair, previous=False) != before

    asyncio.run(scenario())
