"""Who leads, and after whom."""

import asyncio

from swarm_jax.core.newest import Newest
from swarm_jax.core.reports import CommitRecord
from swarm_jax.net.local import LocalNetwork
from swarm_jax.roles.lease import Lease
from swarm_jax.roles.standby import Standby
from swarm_jax.sim.clock import run_virtual

KEY = "run.trainer"


def make_lease(
    config, network: LocalNetwork, trainer: str, directory=None, newest=None
) -> Lease:
    return Lease(
        config,
        directory or network.directory(trainer),
        Standby(config, network.find(trainer) or network.calls(trainer)),
        key=KEY,
        trainer=trainer,
        data_digest="data",
        newest=newest or Newest(),
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


def test_who_leads_next_is_told_how_far_the_run_was(config):
    async def told(step):
        network = LocalNetwork(heartbeat_s=1.0)
        ours, theirs = Newest(), Newest()
        ours.saw(1, step)
        ours.knows(1, CommitRecord(step - 1, 0.5))
        first = make_lease(config, network, "first", newest=ours)
        await first.release(await first.acquire())
        await make_lease(config, network, "second", newest=theirs).acquire()
        return theirs

    newest = run_virtual(told(3))
    assert newest.position == (1, 3) and newest.last_commit == CommitRecord(2, 0.5)
    assert run_virtual(told(config.steps)).position == (1, config.steps)
    assert run_virtual(told(config.steps + 1)).position == (0, 0), "nonsense"


class SlowDirectory:
    """Takes its time to store, and again to say so."""

    def __init__(self, directory):
        self._directory = directory
        self.before_s = self.after_s = 0.0
        self.stored = asyncio.Event()

    async def store(self, *args, **options):
        await asyncio.sleep(self.before_s)
        await self._directory.store(*args, **options)
        self.stored.set()
        await asyncio.sleep(self.after_s)

    async def get(self, key):
        return await self._directory.get(key)


def test_a_trainer_that_goes_while_it_claims_to_lead_stands_in_nobodys_way(config):
    async def main():
        network = LocalNetwork(heartbeat_s=1.0)
        slow = SlowDirectory(network.directory("first"))
        slow.after_s = config.tuning.lease_s / 20
        claiming = asyncio.ensure_future(
            make_lease(config, network, "first", slow).acquire()
        )
        await slow.stored.wait()
        claiming.cancel()
        await asyncio.wait([claiming])
        async with asyncio.timeout(config.tuning.lease_s / 10):
            await make_lease(config, network, "second").acquire()

    run_virtual(main())


def test_a_lease_does_not_lapse_while_stores_are_held_up(config):
    async def main():
        network = LocalNetwork(heartbeat_s=1.0)
        slow = SlowDirectory(network.directory("first"))
        first = make_lease(config, network, "first", slow)
        keeping = asyncio.ensure_future(first.keep(await first.acquire()))
        slow.before_s = slow.after_s = 0.6 * config.tuning.lease_s
        second = asyncio.ensure_future(make_lease(config, network, "second").acquire())
        await asyncio.wait([second], timeout=20 * config.tuning.lease_s)
        assert not second.done()
        keeping.cancel()
        await second

    run_virtual(main())
