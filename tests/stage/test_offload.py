"""Parameters and optimizer state in main memory: the second CPU device plays it."""

import asyncio
from functools import partial

import jax
import pytest

from swarm_jax.errors import Abandoned
from swarm_jax.stage.ahead import Ahead
from swarm_jax.stage.home import Home
from swarm_jax.stage.memory import standing_bytes, tree_bytes
from swarm_jax.stage.residuals import ResidualBudget
from swarm_jax.stage.threaded import ThreadedCompute

CARD, HOST = jax.local_devices()[:2]

TRANSFERS = {"jit(stage)", "jit(convert_element_type)", "jit(_identity_fn)"}
"""How jax itself copies an array to a device of one's choice."""


class Count:
    is_early = False

    def start(self):
        return True

    def settle(self, finite, loss_sum):
        assert finite


def devices_of(tree):
    return {device for leaf in jax.tree.leaves(tree) for device in leaf.devices()}


def as_bytes(arrays):
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays]


@pytest.fixture
def make_pair(make_stages):
    """``make(host, dtype, delayed_updates, residuals)``: a first and a last stage."""
    made = []

    def make(host, dtype, delayed_updates=False, residuals=None):
        pair = [
            ThreadedCompute(
                stage.programs,
                partial(stage.programs.copy, stage.params),
                residuals=ResidualBudget(residuals),
                home=Home(host),
                delayed_updates=delayed_updates,
            )
            for stage in make_stages((1, 3), dtype)
        ]
        made.extend(pair)
        return pair

    yield make
    for compute in made:
        compute.close()


async def train(pair, microbatch, alone=False):
    first, last = pair
    inputs_BL, targets_BL = microbatch
    there = await first.forward((inputs_BL,), keep=True, order=0)
    back = await last.loss_backward(there.y, targets_BL, count=Count(), order=0)
    await first.backward(there.residuals, back.grad_x, count=Count(), order=0)
    for compute in pair:
        if alone:
            squared_norm = await compute.reduce_alone(0.1)
        else:
            reduced = await compute.load_reduced(await compute.gradient_sum(0.1))
            squared_norm = reduced.squared_norm
        await compute.apply(squared_norm**0.5)


async def loss(pair, microbatch, previous):
    first, last = pair
    inputs_BL, targets_BL = microbatch
    there = await first.forward((inputs_BL,), keep=False, order=0, previous=previous)
    back = await last.loss_backward(
        there.y, targets_BL, count=None, order=0, previous=previous
    )
    return back.loss_sum


def assert_at_home(compute):
    assert devices_of((compute._params, compute._opt_state)) == {HOST}
    assert devices_of((compute._weights, compute._gradient_sum)) == {CARD}
    if compute._previous_weights:
        assert devices_of(compute._previous_weights) == {CARD}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_updates_in_main_memory_equal_those_on_the_device(
    dtype, make_pair, make_microbatch
):
    async def scenario(host):
        pair, found = make_pair(host, dtype), []
        initial = [await compute.state() for compute in pair]
        for step in range(3):
            before = await loss(pair, make_microbatch(9), previous=False)
            await train(pair, make_microbatch(step), alone=step == 1)
            assert await loss(pair, make_microbatch(9), previous=True) == before
            found.append(await loss(pair, make_microbatch(9), previous=False))
            assert found[-1] != before
            if host is not None:
                for compute in pair:
                    assert_at_home(compute)
        for compute in pair:
            compute.forget_previous()
        with pytest.raises(Abandoned):
            await loss(pair, make_microbatch(9), previous=True)
        states = [as_bytes(await compute.state()) for compute in pair]
        digests = [await compute.digest() for compute in pair]
        for compute, state in zip(pair, initial, strict=True):
            await compute.load_state(state)
        await train(pair, make_microbatch(0))
        found.append(await loss(pair, make_microbatch(9), previous=False))
        for compute in pair:
            await compute.reset()
            if host is not None:
                assert_at_home(compute)
        found.append(await loss(pair, make_microbatch(9), previous=False))
        assert found[3] == found[0]
        return found, states, digests

    assert asyncio.run(scenario(HOST)) == asyncio.run(scenario(None))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_so_do_delayed_updates(dtype, make_pair, make_microbatch):
    """Older weights stay on the device, also those that came with a state."""

    async def losses(pair):
        return [await loss(pair, make_microbatch(9), previous=p) for p in (0, 1)]

    async def scenario(host):
        pair, other = (make_pair(host, dtype, True) for _ in range(2))
        found = [await losses(pair)]
        for step in range(3):
            await train(pair, make_microbatch(step), alone=step == 1)
            found.append(await losses(pair))
            assert found[-1][1] == found[-2][0] != found[-1][0]
        for compute, joiner in zip(pair, other, strict=True):
            await joiner.load_state(await compute.state())
            if host is not None:
                assert_at_home(compute)
                assert_at_home(joiner)
        assert await losses(other) == found[-1]
        return found

    assert asyncio.run(scenario(HOST)) == asyncio.run(scenario(None))


@pytest.mark.parametrize("residuals", [None, 0])
def test_what_was_compiled_ahead_is_not_compiled_again(
    residuals, make_pair, make_stages, make_microbatch
):
    jax.clear_caches()
    names = []

    def hear(event, seconds, **details):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            names.append(details["fun_name"])

    for stage in make_stages((1, 3), "bfloat16"):
        init = partial(stage.programs.copy, stage.params)
        ahead = Ahead(stage.programs, init, Home(HOST), run_passes=True)
        ahead.compile()
        if residuals == 0 and ahead.residuals is not None:
            ahead.compile_recomputing()

    async def scenario():
        pair = make_pair(HOST, "bfloat16", residuals=residuals)
        for compute in pair:
            await compute.digest()
        names.clear()
        await train(pair, make_microbatch(0))
        await train(pair, make_microbatch(1), alone=True)
        await pair[0].load_state(await pair[0].state())

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        asyncio.run(scenario())
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
    assert set(names) <= TRANSFERS, names


def test_the_device_has_what_the_plan_says(make_pair, make_stages, make_microbatch):
    stage = make_stages((1, 3), "bfloat16")[0]
    ahead = Ahead(stage.programs, lambda: stage.params, Home(HOST))
    pair = make_pair(HOST, "bfloat16")
    asyncio.run(train(pair, make_microbatch(0)))
    held = pair[0]._weights, pair[0]._previous_weights, pair[0]._gradient_sum
    assert standing_bytes(ahead) == tree_bytes(held)
