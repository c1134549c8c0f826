"""A search of the DHT whose caller gives up leaves no task that nobody ends."""

import asyncio
import gc
import os
import signal

import pytest
from hivemind.p2p import P2P
from hivemind.utils import get_dht_time

from swarm_jax.net.hivemind_node import start_node
from swarm_jax.net.hivemind_searches import SearchingNode


@pytest.fixture
def complaints():
    """A loop, and what it says of tasks that are collected before they are done."""
    loop, found = asyncio.new_event_loop(), []
    loop.set_exception_handler(lambda _, context: found.append(context["message"]))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        yield runner, found


def searching() -> list[asyncio.Task]:
    """What workers of searches wait for: an answer, or the end of the search."""
    names = ("get_neighbors", "Event.wait")
    return [
        task
        for task in asyncio.all_tasks()
        if task.get_coro().__qualname__.endswith(names)
    ]


def test_a_search_that_nobody_waits_for_any_more_comes_to_its_end(complaints):
    async def main():
        frozen = await start_node()
        maddrs = frozen.visible_maddrs()
        p2p = await P2P.create(initial_peers=maddrs)
        node = await SearchingNode.create(p2p=p2p, initial_peers=maddrs)
        node.protocol.wait_timeout = 0.3
        os.kill(frozen.daemon_pid, signal.SIGSTOP)
        writing = asyncio.ensure_future(node.store("key", 1, get_dht_time() + 60))
        while len(searching()) < 3:  # the third is hivemind's store
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        assert writing.cancelled()
        del writing
        while searching():
            gc.collect()
            await asyncio.sleep(0.01)
        os.kill(frozen.daemon_pid, signal.SIGCONT)
        await p2p.shutdown()
        await frozen.close()

    runner, found = complaints
    runner.run(main())
    assert found == []
