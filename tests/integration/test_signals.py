"""Each signal for each role, at an exact point of the protocol (``make chaos``).

KILL is power gone, TERM a polite end, STOP a peer that hangs and wakes later: then it
must do no harm, and be equal to its stage peers again before the end.
"""

import signal

import pytest

from tests.integration import oracle

pytestmark = pytest.mark.chaos

SIGNALS = ("KILL", "STOP", "TERM")
MAX_JOINERS = 4


@pytest.fixture(scope="module")
def steps():
    """Enough for those that wake to come back."""
    return 16


def send(child, name):
    child.popen.send_signal(signal.Signals[f"SIG{name}"])


def await_fate(swarm, child, name):
    """Waits until a victim is stopped, dead, or gone politely."""
    if name == "STOP":
        swarm.wait_for_stop(child)
    else:
        swarm.finish(child, -signal.SIGKILL if name == "KILL" else 0)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_peer_of_each_stage_and_the_leading_trainer(swarm, single, name):
    victims = {
        "stage0-0": (1, "counted:1+:1"),
        "stage1-0": (3, "gave-prepare:3:1"),
        "stage2-0": (5, "asked-commit:5:1"),
    }
    swarm.start_bootstrap()
    swarm.start_servers(
        [2, 2, 2], {who: f"{name}:{event}" for who, (_, event) in victims.items()}
    )
    leader = swarm.start_trainer("leader", "--signal_at", f"{name}:got-relay:8:3")
    for victim, (step, _) in victims.items():
        await_fate(swarm, swarm.servers[victim], name)
        swarm.wait_for_step(step, leader)
        if name == "STOP":
            send(swarm.servers[victim], "CONT")
    await_fate(swarm, leader, name)
    other = swarm.start_trainer("other")
    swarm.wait_for_step(9, other)
    if name == "STOP":
        send(leader, "CONT")
        swarm.finish(leader)
    swarm.finish(other)
    gone, woken = ((), victims) if name == "STOP" else (victims, ())
    oracle.check(swarm, single, swarm.servers.keys() - gone, woken)


def join_until_signalled(swarm, donor):
    """Starts peers of the donor's stage until it has got its signal in a download.

    The first may not ask it: it may not know of it yet, or hear nothing of it in time.
    Each is waited for, to the end of its download.
    """
    for late in range(MAX_JOINERS):
        child = swarm.start_server(f"{donor[:6]}-late{late}")
        swarm.wait_until(
            lambda log=child.log: "took the state" in log.read_text(), child
        )
        if "--signal_at:" in swarm.servers[donor].log.read_text():
            return
    pytest.fail(f"none of {MAX_JOINERS} joiners asked {donor} for a chunk")


@pytest.mark.parametrize("name", SIGNALS)
def test_the_bootstrap_a_standby_a_donor_and_a_joiner(swarm, single, name):
    """All while the only peer of stage 0 is frozen, so that no step is closed.

    Donor and joiner get their signal in the middle of a download, of three chunks each.
    """
    bootstrap = swarm.start_bootstrap()
    frozen, donor = "stage0-0", "stage1-0"
    swarm.start_servers(
        [1, 2, 2], {frozen: "STOP:counted:2:1", donor: f"{name}:gave-chunk:*:1"}
    )
    leader = swarm.start_trainer("leader")
    swarm.wait_for_stop(swarm.servers[frozen])
    standby = swarm.start_trainer("standby")
    swarm.wait_until(lambda: swarm.records("swarm-standby"), standby)
    for child in (bootstrap, standby):
        send(child, name)
        await_fate(swarm, child, name)
    swarm.peers = swarm.address_of("stage2-0")
    swarm.start_server("stage2-late", "--signal_at", f"{name}:got-chunk:*:1")
    victims = {donor, "stage2-late"}
    join_until_signalled(swarm, donor)
    for victim in victims:
        await_fate(swarm, swarm.servers[victim], name)
    send(swarm.servers[frozen], "CONT")
    swarm.wait_for_step(4, leader)
    if name == "STOP":
        for child in (bootstrap, standby, *map(swarm.servers.get, victims)):
            send(child, "CONT")
        swarm.finish(standby)
    swarm.finish(leader)
    gone, woken = ((), victims) if name == "STOP" else (victims, ())
    oracle.check(swarm, single, swarm.servers.keys() - gone, woken)
