import asyncio
import dataclasses
import inspect
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm_jax.errors import Abandoned
from swarm_jax.roles import compute as protocol
from swarm_jax.sim.clock import run_virtual
from swarm_jax.stage import compute as compute_module
from swarm_jax.stage.compute import StageCompute
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.results import Backward, Forward, Reduced
from swarm_jax.stage.threaded import ThreadedCompute

PATIENCE_S = 10.0


class Count:
    def __init__(self, allowed=True):
        self.allowed = allowed
        self.settled = []
        self.threads = set()

    def start(self):
        self.threads.add(threading.current_thread())
        return self.allowed

    def settle(self, finite, loss_sum):
        self.threads.add(threading.current_thread())
        self.settled.append((finite, loss_sum))


@pytest.fixture
def programs(make_stages):
    """Of the first stage."""
    return make_stages((1, 3))[0].programs


async def pass_microbatch(pair, microbatch, order=0, count_type=Count):
    """There and back through two stages; returns the last stage's count."""
    first, last = pair
    inputs_BL, targets_BL = microbatch
    counts = count_type(), count_type()
    forward = await first.forward((inputs_BL,), keep=True, order=order)
    back = await last.loss_backward(forward.y, targets_BL, count=counts[1], order=order)
    assert forward.finite and back.finite and back.loss_sum > 0
    back = await first.backward(
        forward.residuals, back.grad_x, count=counts[0], order=order
    )
    assert back.grad_x == [] and back.loss_sum == 0
    return counts[1]


async def close_step(pair, scale):
    squared = 0.0
    for compute in pair:
        reduced = await compute.load_reduced(await compute.gradient_sum(scale))
        squared += reduced.squared_norm
    for compute in pair:
        await compute.apply(squared**0.5)


def as_bytes(arrays):
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays]


def test_it_is_the_compute_of_the_roles():
    for name, method in inspect.getmembers(protocol.Compute, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(getattr(StageCompute, name)).parameters
            theirs = inspect.signature(method).parameters
            assert [(p.name, p.kind) for p in ours.values()] == [
                (p.name, p.kind) for p in theirs.values()
            ]
    for ours, theirs in (
        (Forward, protocol.Forward),
        (Backward, protocol.Backward),
        (Reduced, protocol.Reduced),
    ):
        assert ours.__slots__ == theirs.__slots__


def test_threaded_and_inline_give_equal_bytes(make_pair, make_microbatch):
    async def train(kind):
        pair = make_pair(kind)
        for step in range(2):
            for index in range(3):
                await pass_microbatch(pair, make_microbatch(10 * step + index))
            await close_step(pair, 1 / 81)
        return [as_bytes(await compute.state()) for compute in pair]

    assert asyncio.run(train(InlineCompute)) == asyncio.run(train(ThreadedCompute))


def test_arrays_are_uploaded_ahead_where_the_device_is_not_the_host(
    make_pair, make_microbatch, monkeypatch
):
    async def total(pair):
        await pass_microbatch(pair, make_microbatch(0))
        return [as_bytes(await compute.gradient_sum(1.0)) for compute in pair]

    expected = asyncio.run(total(make_pair(InlineCompute)))
    uploaded = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    pair = make_pair(ThreadedCompute)
    monkeypatch.setattr(
        jax,
        "device_put",
        lambda tree: uploaded.append(tree) or jax.tree.map(jnp.asarray, tree),
    )
    assert asyncio.run(total(pair)) == expected
    assert len(uploaded) == 3


def test_many_microbatches_at_once_are_all_in_the_sum(make_pair, make_microbatch):
    async def total(pair, at_once):
        if at_once:
            await asyncio.gather(
                *(pass_microbatch(pair, make_microbatch(i), i) for i in range(6))
            )
        else:
            for i in range(6):
                await pass_microbatch(pair, make_microbatch(i))
        return [array for compute in pair for array in await compute.gradient_sum(1.0)]

    expected = asyncio.run(total(make_pair(InlineCompute), at_once=False))
    actual = asyncio.run(total(make_pair(ThreadedCompute), at_once=True))
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * abs(other).max())


def test_counts_are_called_in_the_thread_of_the_loop(make_pair, make_microbatch):
    async def scenario():
        count = await pass_microbatch(make_pair(ThreadedCompute), make_microbatch(0))
        assert count.threads == {threading.current_thread()}
        ((finite, loss_sum),) = count.settled
        assert finite and loss_sum > 0

    asyncio.run(scenario())


def test_abandoned_and_uncounted_work_leave_the_sum_alone(make_pair, make_microbatch):
    async def scenario():
        _, last = pair = make_pair()
        inputs_BL, targets_BL = make_microbatch(0)
        y = (await pair[0].forward((inputs_BL,), keep=False, order=0)).y
        refused = Count(allowed=False)
        with pytest.raises(Abandoned):
            await last.loss_backward(y, targets_BL, count=refused, order=0)
        back = await last.loss_backward(y, targets_BL, count=None, order=0)
        loss = await last.loss(y, targets_BL, order=0)
        assert back.loss_sum == pytest.approx(loss, rel=1e-6)
        assert refused.settled == []
        assert not any(array.any() for array in await last.gradient_sum(1.0))

    asyncio.run(scenario())


def test_a_bad_microbatch_is_reported_and_not_counted(make_pair, make_microbatch):
    async def scenario():
        first, last = make_pair()
        inputs_BL, targets_BL = make_microbatch(0)
        inputs_BL[0, 0] = 1_000
        forward = await first.forward((inputs_BL,), keep=True, order=0)
        assert not forward.finite
        count = Count()
        back = await last.loss_backward(forward.y, targets_BL, count=count, order=0)
        assert not back.finite and count.settled[0][0] is False
        assert not any(array.any() for array in await last.gradient_sum(1.0))

    asyncio.run(scenario())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_makes_a_replica(dtype, make_pair, make_microbatch):
    async def scenario():
        pair, others = make_pair(dtype=dtype), make_pair(dtype=dtype)
        await pass_microbatch(pair, make_microbatch(0))
        await close_step(pair, 0.1)
        states = [await compute.state() for compute in pair]
        assert any(array.shape == () for array in states[0])
        assert await pair[0].digest() != await others[0].digest()
        await pass_microbatch(others, make_microbatch(9))
        for other, state in zip(others, states, strict=True):
            await other.load_state(state)
            assert not any(array.any() for array in await other.gradient_sum(1.0))
        for replica in (pair, others):
            await pass_microbatch(replica, make_microbatch(1))
            await close_step(replica, 0.1)
        for one, other in zip(pair, others, strict=True):
            assert await one.digest() == await other.digest()
            assert as_bytes(await one.state()) == as_bytes(await other.state())

    asyncio.run(scenario())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replays_use_the_parameters_before_the_update(
    dtype, make_pair, make_microbatch
):
    async def there_and_back(pair, previous):
        first, last = pair
        inputs_BL, targets_BL = make_microbatch(5)
        forward = await first.forward(
            (inputs_BL,), keep=True, order=0, previous=previous
        )
        back = await last.loss_backward(
            forward.y, targets_BL, count=None, order=0, previous=previous
        )
        await first.backward(forward.residuals, back.grad_x, count=None, order=0)
        return as_bytes(back.grad_x), back.loss_sum

    async def scenario():
        first, last = pair = make_pair(dtype=dtype)
        before = await there_and_back(pair, previous=False)
        await pass_microbatch(pair, make_microbatch(0))
        await close_step(pair, 0.1)
        assert await there_and_back(pair, previous=True) == before
        assert await there_and_back(pair, previous=False) != before
        for compute in pair:
            compute.forget_previous()
        with pytest.raises(Abandoned):
            await there_and_back(pair, previous=True)
        x = [np.zeros(shape, dtype) for _, shape in last.input_specs]
        with pytest.raises(Abandoned):
            await last.loss_backward(
                x, make_microbatch(5)[1], count=None, order=0, previous=True
            )

    asyncio.run(scenario())


def test_a_stage_peers_sum_is_added(make_pair, make_microbatch):
    async def scenario():
        ours, theirs, both = make_pair(), make_pair(), make_pair()
        for seed, pairs in ((0, (ours, both)), (1, (theirs, both))):
            for pair in pairs:
                await pass_microbatch(pair, make_microbatch(seed))
        for our, their, sum_of_both in zip(ours, theirs, both, strict=True):
            handed_over = await their.gradient_sum(1.0)
            assert our.sum_specs == tuple((a.dtype.name, a.shape) for a in handed_over)
            assert await our.add_to_sum(handed_over)
            bad = [np.full_like(array, np.inf) for array in handed_over]
            assert not await our.add_to_sum(bad)
            for one, other in zip(
                await our.gradient_sum(1.0),
                await sum_of_both.gradient_sum(1.0),
                strict=True,
            ):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)

    asyncio.run(scenario())


def test_reset_goes_back_to_step_0(make_pair, make_microbatch):
    async def scenario():
        pair = make_pair()
        initial = [as_bytes(await compute.state()) for compute in pair]
        for _ in range(2):
            await pass_microbatch(pair, make_microbatch(0))
            await close_step(pair, 0.1)
            await pass_microbatch(pair, make_microbatch(1))
            for compute, expected in zip(pair, initial, strict=True):
                assert as_bytes(await compute.state()) != expected
                await compute.reset()
                assert as_bytes(await compute.state()) == expected
                assert not any(a.any() for a in await compute.gradient_sum(1.0))

    asyncio.run(scenario())


def test_state_is_a_copy(make_pair, make_microbatch):
    async def scenario():
        first, last = pair = make_pair(ThreadedCompute)
        await pass_microbatch(pair, make_microbatch(0))
        await first.load_reduced(await first.gradient_sum(0.1))
        expected = as_bytes(await first.state())
        # The update takes over the buffers while the state is still being fetched.
        state, _ = await asyncio.gather(first.state(), first.apply(1.0))
        assert as_bytes(state) == expected != as_bytes(await first.state())

    asyncio.run(scenario())


def test_the_device_works_on_while_a_state_comes_to_the_host(
    make_pair, make_microbatch, monkeypatch
):
    to_host = compute_module._to_host
    arriving, may_arrive = threading.Event(), threading.Event()

    def slow_for_states(tree):
        if isinstance(tree, tuple) and any(isinstance(part, dict) for part in tree):
            arriving.set()
            assert may_arrive.wait(PATIENCE_S)
        return to_host(tree)

    async def scenario():
        pair = make_pair(ThreadedCompute)
        monkeypatch.setattr(compute_module, "_to_host", slow_for_states)
        state = asyncio.ensure_future(pair[1].state())
        try:
            assert await asyncio.to_thread(arriving.wait, PATIENCE_S)
            async with asyncio.timeout(PATIENCE_S):
                for seed in range(4):  # more than the device holds at once
                    await pass_microbatch(pair, make_microbatch(seed))
            assert not state.done()
        finally:
            may_arrive.set()
        assert as_bytes(await state) == as_bytes(await pair[1].state())

    asyncio.run(scenario())


def test_what_is_loaded_is_a_copy(make_pair, make_microbatch):
    def aligned(array):
        """On the boundary that lets jax use the memory as it is."""
        buffer = np.empty(array.nbytes + 64, np.uint8)
        start = -buffer.ctypes.data % 64
        view = buffer[start : start + array.nbytes].view(array.dtype)
        view = view.reshape(array.shape)
        view[...] = array
        return view

    async def scenario():
        first, _ = pair = make_pair()
        await pass_microbatch(pair, make_microbatch(0))
        before = [aligned(array) for array in await first.state()]
        gradients = [aligned(array) for array in await first.gradient_sum(1.0)]
        await first.load_reduced(gradients)
        await first.apply(1.0)
        after = as_bytes(await first.state())

        await first.load_state(before)
        await first.load_reduced(gradients)
        for array in (*before, *gradients):
            array[...] = 0
        await first.apply(1.0)
        assert as_bytes(await first.state()) == after

    asyncio.run(scenario())


def test_state_of_another_stage_is_refused(make_pair):
    async def scenario():
        first, last = make_pair()
        state = await first.state()
        with pytest.raises(ValueError, match="array 0 .* peer of the same stage"):
            await last.load_state(state)
        with pytest.raises(ValueError, match="9 arrays instead of 10"):
            await first.load_state(state[:-1])
        state[1] = state[1].astype(np.float16)
        with pytest.raises(ValueError, match="array 1 is .*float16.* instead of"):
            await first.load_state(state)

    asyncio.run(scenario())


def test_backward_takes_the_weights_of_its_forward(make_pair, make_microbatch):
    async def scenario():
        first, _ = pair = make_pair(dtype="bfloat16")
        inputs_BL, _ = make_microbatch(0)
        now, later = [
            await first.forward((inputs_BL,), keep=True, order=0) for _ in range(2)
        ]
        await first.backward(now.residuals, now.y, count=Count(), order=0)
        expected = as_bytes(await first.gradient_sum(1.0))
        await pass_microbatch(pair, make_microbatch(1))
        await close_step(pair, 0.1)
        await first.backward(later.residuals, later.y, count=Count(), order=0)
        assert as_bytes(await first.gradient_sum(1.0)) == expected

    asyncio.run(scenario())


def test_a_failing_device_raises_and_does_not_count(programs, make_stages):
    def fail(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    async def scenario(kind):
        stage = make_stages((1, 3))[0]
        broken = dataclasses.replace(programs, backward_adding=fail)
        compute = kind(broken, lambda: stage.params)
        count = Count()
        inputs_BL = np.zeros(compute.input_specs[0][1], np.int32)
        forward = await compute.forward((inputs_BL,), keep=True, order=0)
        with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
            await compute.backward(forward.residuals, forward.y, count=count, order=0)
        assert count.settled == [(False, 0.0)]
        assert not any(array.any() for array in await compute.gradient_sum(1.0))
        compute.close()

    for kind in (InlineCompute, ThreadedCompute):
        asyncio.run(scenario(kind))


def test_inline_takes_as_long_as_it_is_told(make_stages):
    async def scenario():
        stage = make_stages((1, 3))[0]
        durations_s = {"forward": 2.0, "backward": 5.0}
        compute = InlineCompute(
            stage.programs, lambda: stage.params, lambda name: durations_s[name]
        )
        inputs_BL = np.zeros(compute.input_specs[0][1], np.int32)
        first, second = await asyncio.gather(
            *(compute.forward((inputs_BL,), keep=True, order=i) for i in range(2))
        )
        loop = asyncio.get_running_loop()
        assert loop.time() == 4.0
        assert first.compute_s == second.compute_s == 2.0
        back = await compute.backward(first.residuals, first.y, count=None, order=0)
        assert loop.time() == 9.0 and back.compute_s == 5.0

    run_virtual(scenario())


def test_closing_stops_the_threads(make_pair):
    async def scenario():
        pair = make_pair(ThreadedCompute)
        await pair[0].digest()
        names = {thread.name.split("_")[0] for thread in threading.enumerate()}
        assert "device" in names
        for compute in pair:
            compute.close()

    asyncio.run(scenario())
    names = {thread.name.split("_")[0] for thread in threading.enumerate()}
    assert not names & {"device", "fetch", "upload", "state"}
