"""The exact commands for the next machine, with addresses that it can reach."""

import ipaddress
import shlex
from collections.abc import Sequence

PYTHON = ("python", "-m")


def reachable(maddrs: Sequence[str]) -> list[str]:
    """Orders a peer's addresses by how far they can be reached from, farthest first.

    Names and public addresses come before private ones, IPv4 before IPv6. Loopback and
    link-local addresses are left out, unless there are no others: on another machine
    they would lead nowhere.

    Args:
        maddrs: Multiaddresses such as ``/ip4/10.0.0.5/tcp/4001/p2p/12D3..``.
    """
    ranked = sorted((_distance(maddr), maddr) for maddr in maddrs)
    far = [maddr for (local, *_), maddr in ranked if not local]
    return far or [maddr for _, maddr in ranked]


def server_command(
    experiment: Sequence[str],
    stage: int,
    initial_peers: Sequence[str],
    workdir: str,
) -> str:
    """Command that starts a stage server.

    Args:
        experiment: ``["--config", FILE, "--config.FIELD=VALUE", ...]``.
    """
    return shlex.join(
        [
            *(*PYTHON, "scripts.run_server"),
            *(*experiment, "--stage", str(stage)),
            *("--initial_peers", *initial_peers),
            *("--workdir", workdir),
        ]
    )


def trainer_command(
    experiment: Sequence[str], initial_peers: Sequence[str], workdir: str
) -> str:
    """Command that starts a trainer."""
    return shlex.join(
        [
            *(*PYTHON, "scripts.run_trainer", *experiment),
            *("--initial_peers", *initial_peers),
            *("--workdir", workdir),
        ]
    )


def welcome(
    experiment: Sequence[str],
    num_stages: int,
    run_id: str,
    maddrs: Sequence[str],
) -> str:
    """What a bootstrap prints: its addresses, and how the others find it."""
    initial_peers = reachable(maddrs)[:1]
    workdir = f"runs/{run_id}_by_hand"
    lines = ["Bootstrap of the swarm. Addresses:"]
    lines += [f"  {maddr}" for maddr in maddrs]
    lines += ["", "Next, one or more stage servers for each stage, on any machine:"]
    for stage in range(num_stages):
        lines.append(
            "  " + server_command(experiment, stage, initial_peers[:1], workdir)
        )
    lines += ["", "and a trainer:"]
    lines.append(f"  {trainer_command(experiment, initial_peers, workdir)}")
    return "\n".join(lines)


def _distance(maddr: str) -> tuple[bool, bool, bool]:
    """Sorts small for what can be reached from far: (local, private, not IPv4)."""
    _, protocol, host, *_ = maddr.split("/")
    if protocol not in ("ip4", "ip6"):
        return False, False, False
    address = ipaddress.ip_address(host)
    local = address.is_loopback or address.is_link_local
    return local, address.is_private, protocol != "ip4"
