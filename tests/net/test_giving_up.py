"""A call that is given up ends at its callee and at all that the callee called for it.

Over real daemons: three peers in a chain, each of which holds a large message.
"""

import asyncio

import numpy as np
import pytest

from swarm_jax.errors import PeerError
from swarm_jax.net.protocols import Message

PAYLOAD = np.zeros(1 << 20, np.uint8)


class Chain:
    """Passes a call on to the next peer; the last one never answers."""

    def __init__(self, calls, next_peer):
        self._calls = calls
        self._next_peer = next_peer
        self.open = 0
        self.ended = 0

    def admit(self, sender, header, specs):
        return None

    async def handle(self, sender, message):
        self.open += 1
        try:
            if self._next_peer is None:
                await asyncio.get_running_loop().create_future()
            return await self._calls.call(self._next_peer, message, timeout_s=60)
        finally:
            self.open -= 1
            self.ended += 1


@pytest.fixture
def chain(runner, swarm_of_hivemind):
    """The caller, and the two peers behind it with their services."""

    async def make():
        caller, middle, last = [await swarm_of_hivemind.peer() for _ in range(3)]
        services = Chain(middle.calls, last.peer_id), Chain(last.calls, None)
        for peer, service in zip((middle, last), services, strict=True):
            await peer.calls.serve(service)
        return caller, (middle, last), services

    return runner.run(make())


@pytest.mark.parametrize(
    "how", ["cancel", "time-out", "lost stream", "killed caller", "killed middle"]
)
async def test_what_is_given_up_ends_down_the_chain(chain, until, how):
    caller, (middle, last), services = chain
    call = asyncio.ensure_future(
        caller.calls.call(
            middle.peer_id,
            Message({}, [PAYLOAD]),
            timeout_s=2.0 if how == "time-out" else 60.0,
        )
    )
    await until(lambda: services[1].open)
    budgets = [peer.calls._budget for peer in (middle, last)]
    assert all(budget.used_bytes > PAYLOAD.nbytes for budget in budgets)
    if how == "cancel":
        call.cancel()
    elif how == "lost stream":
        for callee in list(middle.calls._callees[caller.peer_id]):
            callee.abort()
    elif how == "killed caller":
        caller.kill()
    elif how == "killed middle":
        middle.kill()
    await asyncio.wait([call])
    assert call.cancelled() or isinstance(call.exception(), PeerError)
    await until(lambda: [service.ended for service in services] == [1, 1])
    await until(lambda: not any(budget.used_bytes for budget in budgets))


async def test_what_was_given_up_while_its_body_came_frees_its_memory(chain, until):
    caller, (middle, _), services = chain
    large = Message({}, [np.zeros(48 << 20, np.uint8)])
    call = asyncio.ensure_future(caller.calls.call(middle.peer_id, large, timeout_s=60))
    await until(lambda: middle.calls._budget.used_bytes)
    call.cancel()
    await asyncio.wait([call])
    await until(lambda: not middle.calls._budget.used_bytes)
    assert services[0].open == 0
