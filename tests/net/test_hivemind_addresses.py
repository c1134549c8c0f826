"""Peers that know only the bootstrap find each other, in whatever range they are."""

import asyncio

from swarm_jax.net.hivemind_calls import HivemindCalls
from swarm_jax.net.hivemind_node import start_node
from swarm_jax.net.protocols import Message


class Echo:
    def admit(self, sender, header, specs):
        return None

    async def handle(self, sender, message):
        return message


def calls_of(node) -> HivemindCalls:
    return HivemindCalls(node, "test", heartbeat_s=0.5, max_message_bytes=1000)


def test_peers_that_listen_everywhere_reach_each_other_through_the_bootstrap():
    everywhere = ["/ip4/0.0.0.0/tcp/0"]

    async def main():
        bootstrap = await start_node(host_maddrs=everywhere)
        # Not a loopback address, which libp2p would take for a private one.
        far = [m for m in bootstrap.visible_maddrs() if "127.0.0.1" not in m]
        initial_peers = far or bootstrap.visible_maddrs()
        nodes = [
            await start_node(host_maddrs=everywhere, initial_peers=initial_peers)
            for _ in range(2)
        ]
        caller, callee = (calls_of(node) for node in nodes)
        try:
            await callee.serve(Echo())
            async with asyncio.timeout(30):
                while nodes[1].peer_id not in await nodes[0].published_peers():
                    await asyncio.sleep(0.05)
            message = Message({"hello": 1})
            answer = await caller.call(callee.peer_id, message, timeout_s=20.0)
            return answer.header
        finally:
            for closing in (caller, callee, *nodes, bootstrap):
                await closing.close()

    assert asyncio.run(main()) == {"hello": 1}
