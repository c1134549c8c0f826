"""A connection that is dead, and known to nobody as such, is not used for long."""

import asyncio
import contextlib

from swarm_jax.errors import PeerError
from swarm_jax.launcher.links import Proxy
from swarm_jax.net.hivemind_calls import HivemindCalls
from swarm_jax.net.hivemind_node import start_node
from swarm_jax.net.protocols import Message

HEARTBEAT_S = 0.3
MESSAGE = Message({"hello": 1})


class Echo:
    def admit(self, sender, header, specs):
        return None

    async def handle(self, sender, message):
        return message


def test_a_peer_behind_a_dead_connection_is_dialled_anew_within_seconds():
    """libp2p keeps to that connection for 40 s."""

    async def main(proxy):
        nodes, calls = [], []
        for name in ("caller", "callee"):
            _, host, _, announced = proxy.options(name)
            node = await start_node(
                host_maddrs=[host],
                announce_maddrs=[announced],
                initial_peers=nodes[0].visible_maddrs() if nodes else (),
                silence_s=3 * HEARTBEAT_S,
            )
            nodes.append(node)
            calls.append(
                HivemindCalls(
                    node,
                    "test",
                    heartbeat_s=HEARTBEAT_S,
                    max_message_bytes=1000,
                    same_host=False,
                )
            )
        caller, callee = calls
        await callee.serve(Echo())
        await caller.call(callee.peer_id, MESSAGE, timeout_s=10)
        proxy.spoil("kill_silently", "callee")
        async with asyncio.timeout(20):
            answer = None
            while answer is None:
                with contextlib.suppress(PeerError):
                    answer = await caller.call(callee.peer_id, MESSAGE, timeout_s=10)
        for closing in (*calls, *reversed(nodes)):
            await closing.close()

    with Proxy() as proxy:
        asyncio.run(main(proxy))
