"""Addresses for other machines and the commands printed for them."""

import shlex

import pytest

from swarm_jax.launcher.commands import reachable, welcome

LOOPBACK = "/ip4/127.0.0.1/tcp/4001/p2p/Q"
PRIVATE = "/ip4/10.0.0.5/tcp/4001/p2p/Q"
PUBLIC = "/ip4/8.8.8.8/tcp/4001/p2p/Q"
PUBLIC_6 = "/ip6/2001:4860::1/tcp/4001/p2p/Q"
LINK_LOCAL = "/ip6/fe80::1/tcp/4001/p2p/Q"
NAMED = "/dns4/swarm.example.org/tcp/4001/p2p/Q"


@pytest.mark.parametrize(
    ("maddrs", "expected"),
    [
        ([LOOPBACK], [LOOPBACK]),
        ([LOOPBACK, PRIVATE], [PRIVATE]),
        ([LINK_LOCAL, PRIVATE, PUBLIC_6, PUBLIC], [PUBLIC, PUBLIC_6, PRIVATE]),
        ([PRIVATE, NAMED], [NAMED, PRIVATE]),
        ([], []),
    ],
)
def test_addresses_are_ordered_by_their_reach(maddrs, expected):
    assert reachable(maddrs) == expected


def test_printed_commands_can_be_pasted():
    override = "--config.data.corpus=files:/my texts"
    experiment = ["--config", "configs/tiny.py", override]
    text = welcome(experiment, 2, "tiny", [LOOPBACK, PRIVATE])
    assert f"  {LOOPBACK}" in text.splitlines()
    commands = [shlex.split(x) for x in text.splitlines() if "python -m" in x]
    assert [c[2] for c in commands] == ["scripts.run_server"] * 2 + [
        "scripts.run_trainer"
    ]
    assert [c[c.index("--stage") + 1] for c in commands[:2]] == ["0", "1"]
    for command in commands:
        assert override in command
        assert command[command.index("--initial_peers") + 1] == PRIVATE
        assert command[command.index("--workdir") + 1] == "runs/tiny_by_hand"
