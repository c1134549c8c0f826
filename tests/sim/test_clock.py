"""Virtual time: jumps, is deterministic, and notices when nothing can happen."""

import asyncio

import pytest

from swarm_jax.sim.clock import Deadlock, run_virtual


def test_hours_pass_at_once_and_in_order():
    async def main():
        seen = []

        async def sleeper(hours: float) -> None:
            await asyncio.sleep(3600 * hours)
            seen.append(hours)

        await asyncio.gather(*(sleeper(h) for h in (3, 1, 2)))
        return seen, asyncio.get_running_loop().time()

    assert run_virtual(main()) == ([1, 2, 3], 3 * 3600)


def test_timeouts_work_on_the_same_clock():
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.sleep(61)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 60


def test_waiting_for_nothing_is_an_error_not_a_hang():
    async def main():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match="nothing left to wait for"):
        run_virtual(main())
