"""Who leads, and after whom."""

import asyncio

from swarm_jax.net.local import LocalNetwork
from swarm_jax.roles.lease import Lease
from swarm_jax.sim.clock import run_virtual

KEY = "run.trainer"


def make_lease(config, network: LocalNetwork, trainer: str, directory=None) -> Lease:
    return Lease(
        config,
        directory or network.directory(trainer),
        key=KEY,
        trainer=trainer,
        data_digest="data",
    )


def test_who_stood_by_when_the_leader_died_takes_a_higher_number(config):
    async def main():
        network = LocalNetwork(heartbeat_s=1.0)
        first = make_lease(config, network, "first")
        number = await first.acquire()
        second = asyncio.ensure_future(make_lease(config, network, "second").acquire())
        await asyncio.sleep(config.tuning.lease_s + 2)  # nobody renews
        return number, second.result()

    number, following = run_virtual(main())
    assert following == number + 1


class SlowDirectory:
    """Stores at once, but is long in saying so."""

    def __init__(self, directory):
        self._directory = directory
        self.stored = asyncio.Event()

    async def store(self, *args, **options):
        await self._directory.store(*args, **options)
        if not self.stored.is_set():
            self.stored.set()
            await asyncio.sleep(60.0)

    async def get(self, key):
        return await self._directory.get(key)


def test_a_trainer_that_goes_while_it_claims_to_lead_stands_in_nobodys_way(config):
    async def main():
        network = LocalNetwork(heartbeat_s=1.0)
        slow = SlowDirectory(network.directory("first"))
        claiming = asyncio.ensure_future(
            make_lease(config, network, "first", slow).acquire()
        )
        await slow.stored.wait()
        claiming.cancel()
        await asyncio.wait([claiming])
        async with asyncio.timeout(config.tuning.lease_s / 10):
            await make_lease(config, network, "second").acquire()

    run_virtual(main())
