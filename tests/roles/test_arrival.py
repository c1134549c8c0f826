"""How long a peer takes to be of use."""

import asyncio

from swarm_jax.roles.arrival import COMPILE, DOWNLOAD, Arrival, Parts
from swarm_jax.sim.clock import run_virtual


def test_what_overlaps_is_busy_once():
    async def main():
        arrival = Arrival()
        assert arrival.parts == Parts(0.0, 0.0, 0.0)

        async def fetch():
            await arrival.timed(DOWNLOAD, asyncio.sleep(1.0))
            await asyncio.sleep(4.0)
            return await arrival.timed(DOWNLOAD, asyncio.sleep(2.0, "state"))

        compiling = arrival.timed(COMPILE, asyncio.sleep(6.0))
        _, fetched = await asyncio.gather(compiling, fetch())
        assert fetched == "state"
        assert arrival.parts == Parts(compile_s=6.0, download_s=3.0, busy_s=7.0)

    run_virtual(main())
