"""Whether a running peer has an identity already, which two must not share."""

import asyncio

from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure

KNOWS_NOBODY = "failed to find any peer in table"
POLL_S = 0.05
PROBE_TIMEOUT_S = 5.0


async def answers(probe: P2P, peer: PeerID) -> bool:
    """Whether a peer can be found and reached.

    The bootstraps of a daemon are connected before they are in its routing table: for a
    moment, long on a busy machine, it finds nobody because it asks nobody. So it is
    asked again. hivemind takes the first answer.

    Args:
        probe: A daemon with another identity, started with ``initial_peers``.
    """
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            while True:
                try:
                    await probe._client.connect(peer, [])
                    return True
                except ControlFailure as error:
                    if KNOWS_NOBODY not in str(error):
                        return False
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return False
