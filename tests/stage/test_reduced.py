"""How a step's gradient gets from the sum to the update."""

import asyncio
import hashlib
import threading

import numpy as np
import pytest

from swarm_jax.stage import compute as compute_module
from swarm_jax.stage.threaded import ThreadedCompute
from tests.stage.test_compute import PATIENCE_S, as_bytes, pass_microbatch


def test_alone_it_takes_the_gradient_that_it_would_get_back(make_pair, make_microbatch):
    async def scenario():
        ours, theirs = make_pair(), make_pair()
        for step in range(2):
            for pair in (ours, theirs):
                await pass_microbatch(pair, make_microbatch(step))
            for one, other in zip(ours, theirs, strict=True):
                norm = await one.reduce_alone(0.3)
                assert as_bytes(await one.gradient_sum(1.0)) == as_bytes(
                    await other.gradient_sum(1.0)
                )
                reduced = await other.load_reduced(await other.gradient_sum(0.3))
                assert norm == reduced.squared_norm > 0
                await one.apply(norm**0.5)
                await other.apply(norm**0.5)
                assert as_bytes(await one.state()) == as_bytes(await other.state())

    asyncio.run(scenario())


def test_scaled_sum_norm_and_clearing(make_pair, make_microbatch):
    async def scenario():
        first, _ = pair = make_pair()
        await pass_microbatch(pair, make_microbatch(0))
        whole = await first.gradient_sum(1.0)
        half = await first.gradient_sum(0.5)
        for one, other in zip(whole, half, strict=True):
            np.testing.assert_array_equal(one, 2 * other)
        squared = sum(float(np.sum(np.square(array))) for array in half)
        reduced = await first.load_reduced(half)
        assert reduced.squared_norm == pytest.approx(squared, rel=1e-5)
        digest = hashlib.sha256(b"".join(array.tobytes() for array in half))
        assert reduced.digest == digest.hexdigest()
        await first.clear()
        assert not any(array.any() for array in await first.gradient_sum(1.0))

    asyncio.run(scenario())


def test_the_device_works_on_while_a_gradient_is_hashed(
    make_pair, make_microbatch, monkeypatch
):
    digest, hashing, may_hash = (
        compute_module._digest,
        threading.Event(),
        threading.Event(),
    )

    def slow(tree):
        hashing.set()
        assert may_hash.wait(PATIENCE_S)
        return digest(tree)

    async def scenario():
        pair = make_pair(ThreadedCompute)
        monkeypatch.setattr(compute_module, "_digest", slow)
        loading = asyncio.ensure_future(
            pair[1].load_reduced(await pair[1].gradient_sum(1.0))
        )
        try:
            assert await asyncio.to_thread(hashing.wait, PATIENCE_S)
            async with asyncio.timeout(PATIENCE_S):
                await pass_microbatch(pair, make_microbatch(0))
            assert pair[1]._reduced is not None and not loading.done()
        finally:
            may_hash.set()
        await loading

    asyncio.run(scenario())
