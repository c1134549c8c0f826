"""When who stands by takes over, before a lease ends."""

import asyncio

import pytest

from swarm_jax.core.ids import Round
from swarm_jax.core.newest import Newest
from swarm_jax.errors import BadMessage
from swarm_jax.net.local import LocalNetwork
from swarm_jax.net.protocols import Message
from swarm_jax.roles.lease import Lease
from swarm_jax.roles.messages import WATCH_S, Collect, Status, Watch, to_header
from swarm_jax.roles.standby import Standby, Watched
from swarm_jax.sim.clock import run_virtual

HEARTBEAT_S, LEASE_S = 1.0, 20.0


@pytest.fixture
def config(config):
    config.tuning.heartbeat_s, config.tuning.lease_s = HEARTBEAT_S, LEASE_S
    return config


class Pair:
    """A trainer that leads, and one that stands by and has watched it for long."""

    def __init__(self, config):
        self._config = config
        self.network = LocalNetwork(heartbeat_s=HEARTBEAT_S)

    async def start(self) -> None:
        first = await self._join("first")
        number = await first.acquire()
        self.keeping = asyncio.ensure_future(first.keep(number))
        second = await self._join("second")
        self.standing_by = asyncio.ensure_future(second.acquire())
        await asyncio.sleep(3 * LEASE_S)

    async def _join(self, name: str) -> Lease:
        calls = self.network.calls(name)
        await calls.serve(Watched(self._config.swarm_fingerprint()))
        return Lease(
            self._config,
            self._directory(name),
            Standby(self._config, calls),
            key="run.trainer",
            trainer=name,
            data_digest="data",
            newest=Newest(),
        )

    def _directory(self, name: str):
        return self.network.directory(name)

    def kill_the_leader(self) -> None:
        self.keeping.cancel()
        self.network.kill("first")

    async def take_over_s(self, limit_s: float) -> float | None:
        """How long from now until the second one leads; None if not in time."""
        loop = asyncio.get_running_loop()
        since_s = loop.time()
        await asyncio.wait([self.standing_by], timeout=limit_s)
        taken_over = self.standing_by.done()
        for task in (self.keeping, self.standing_by):
            task.cancel()
        return loop.time() - since_s if taken_over else None


class SlowDirectory:
    """Takes its time to read."""

    def __init__(self, directory):
        self._directory = directory
        self.store = directory.store
        self.reading = False

    async def get(self, key):
        self.reading = True
        await asyncio.sleep(LEASE_S / 2)
        self.reading = False
        return await self._directory.get(key)


def take_over_s(config, happens, limit_s=LEASE_S, pair_type=Pair) -> float | None:
    async def main():
        pair = pair_type(config)
        await pair.start()
        happens(pair)
        return await pair.take_over_s(limit_s)

    return run_virtual(main())


def test_a_killed_leader_is_followed_at_once(config):
    assert take_over_s(config, Pair.kill_the_leader) < 0.01


def test_a_directory_that_is_held_up_holds_up_nobody(config):
    def kill_while_it_reads(pair):
        pair.kill_the_leader()
        assert pair.directory.reading

    class Slow(Pair):
        def _directory(self, name):
            self.directory = SlowDirectory(self.network.directory(name))
            return self.directory

    assert take_over_s(config, kill_while_it_reads, pair_type=Slow) < 0.01


def test_a_frozen_leader_is_followed_after_four_heartbeats(config):
    def freeze(pair):
        pair.network.freeze("first")

    assert take_over_s(config, freeze) <= 4 * HEARTBEAT_S + 0.01


def test_a_leader_that_could_not_be_watched_leads_for_its_lease(config):
    """Who is deposed by a trainer that it has lost does not depose that in turn."""

    async def main():
        pair = Pair(config)
        pair.network.partition(["first"], ["second"], silent=False)
        await pair.start()
        pair.keeping.cancel()
        return await pair.take_over_s(2 * LEASE_S)

    assert 0.5 * LEASE_S < run_virtual(main()) <= 1.2 * LEASE_S


def test_a_connection_that_breaks_once_changes_nothing(config):
    def reset(pair):
        pair.network.partition(["first"], ["second"], silent=False)
        pair.network.reunite(["first"], ["second"])

    assert take_over_s(config, reset, 3 * LEASE_S) is None


def test_who_was_frozen_itself_does_not_follow_a_leader_that_is_there(config):
    def sleep(pair):
        pair.network.freeze("second")
        asyncio.get_running_loop().call_later(LEASE_S / 2, pair.network.thaw, "second")

    assert take_over_s(config, sleep, 3 * LEASE_S) is None


def test_a_leader_that_refuses_to_be_watched_is_there(config):
    def refuse(pair):
        pair.network.wires.refusing.add("first")

    assert take_over_s(config, refuse, 3 * WATCH_S) is None


def test_a_trainer_can_be_watched_and_nothing_else():
    watched, collect = Watched("swarm"), Collect(round=Round(1, "a", 1))
    assert watched.admit("a", to_header(Watch(for_s=1.0), "swarm"), []) is None
    refusal = watched.admit("a", to_header(Watch(for_s=1.0), "another"), [])
    assert refusal.header["status"] == Status.WRONG_SWARM
    for header in ({}, to_header(collect, "swarm")):
        with pytest.raises(BadMessage):
            watched.admit("a", {"swarm": "swarm", **header}, [])


def test_nobody_has_a_watch_of_more_than_its_limit_answered():
    async def main():
        request = to_header(Watch(for_s=1e9), "swarm")
        reply = await Watched("swarm").handle("a", Message(request))
        return reply.header["status"], asyncio.get_running_loop().time()

    assert run_virtual(main()) == (Status.OK, WATCH_S)
