"""Bad lines between real peers: slow, mute, half-closed, cut (``make chaos``).

All peers, trainers and the bootstrap are behind the proxy, so that both directions of
every connection are spoilt.
"""

import signal

import pytest

from swarm_jax.launcher.links import Proxy
from tests.integration import oracle

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def steps():
    """Enough for those that were cut off to come back: libp2p dials a peer that could
    not be reached again after seconds."""
    return 40


@pytest.fixture
def proxy(swarm):
    with Proxy() as proxy:
        swarm.addresses = proxy.options
        # Else they would not meet over these lines.
        swarm.experiment += ["--config.tuning.same_host=False"]
        yield proxy


def wake(child):
    child.popen.send_signal(signal.SIGCONT)


def steps_of(swarm, name):
    return [record["step"] for record in swarm.records(name)]


def test_nobody_is_left_for_a_slow_line(swarm, single, proxy):
    """The slow peer takes part in each step, and gets its share when it is well."""
    swarm.start_bootstrap()
    swarm.start_servers([1, 2, 1])
    trainer = swarm.start_trainer()
    swarm.wait_for_step(1, trainer)
    proxy.set_line("stage1-0", delay_s=0.005)
    swarm.wait_for_step(4, trainer)
    proxy.set_line("stage1-0")
    swarm.finish(trainer)
    assert steps_of(swarm, "stage1-0") == list(range(1, 41))
    assert swarm.records("stage1-0")[-1]["microbatches_counted"]
    oracle.check(swarm, single, swarm.servers)


def test_peers_in_a_black_hole_are_left_and_come_back(swarm, single, proxy):
    """What one sends and hears is lost, what the other does is late.

    The swarm waits at step 7, whose stage 0 is frozen, until they are to be seen again.
    """
    swarm.start_bootstrap()
    swarm.start_servers([1, 2, 2], {"stage0-0": "STOP:counted:7:1"})
    trainer = swarm.start_trainer()
    swarm.wait_for_step(1, trainer)
    proxy.set_line("stage1-0", held=True)
    proxy.set_line("stage2-0", swallowed=True)
    swarm.wait_for_stop(swarm.servers["stage0-0"])
    assert proxy.swallowed_bytes
    lost = ("stage1-0", "stage2-0")
    for name in lost:
        assert max(steps_of(swarm, name)) < 7
        proxy.set_line(name)

    def seen():
        stages = swarm.records("swarm")[-1]["stages"]
        return {peer["name"] for stage in stages for peer in stage["peers"]}

    swarm.wait_until(lambda: seen() >= set(lost), trainer)
    wake(swarm.servers["stage0-0"])
    swarm.finish(trainer)
    oracle.check(swarm, single, swarm.servers, woken=lost)


def test_connections_break_in_a_microbatch_and_in_an_all_reduce(swarm, single, proxy):
    """Each is frozen at the door, so that what comes next is what is broken."""
    broken = {
        "stage1-0": ("asked-relay:1+:1", "cut", 4_000),
        "stage2-0": ("asked-prepare:4:1", "cut", 1_000_000),
        "stage0-0": ("asked-prepare:7:1", "half_close", 1_000_000),
    }
    swarm.start_bootstrap()
    swarm.start_servers([2, 2, 2], {n: f"STOP:{e}" for n, (e, _, _) in broken.items()})
    trainer = swarm.start_trainer()
    for name, (_, deed, after_bytes) in broken.items():
        swarm.wait_for_stop(swarm.servers[name])
        proxy.spoil(deed, name, after_bytes)
        wake(swarm.servers[name])
        swarm.wait_until(lambda name=name: proxy.is_spoilt(name), trainer)
    log = swarm.finish(trainer)
    assert "step 4: all-reduce is void" in log
    oracle.check(swarm, single, swarm.servers, woken=broken)


def test_a_leader_that_was_cut_off_does_no_harm(swarm, single, proxy):
    swarm.start_bootstrap()
    swarm.start_servers([1, 2, 1])
    leader = swarm.start_trainer("leader")
    swarm.wait_for_step(1, leader)
    proxy.set_line("leader", held=True)
    other = swarm.start_trainer("other")
    swarm.wait_for_step(6, other)
    proxy.set_line("leader")
    swarm.finish(other)
    swarm.finish(leader)
    oracle.check(swarm, single, swarm.servers)
