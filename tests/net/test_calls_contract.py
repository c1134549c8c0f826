"""What ``PeerCalls`` promises, of all adapters."""

import asyncio
import time

import ml_dtypes
import numpy as np
import pytest

from swarm_jax.errors import (
    PeerLost,
    PeerStalled,
    PeerTimeout,
    RemoteError,
)
from swarm_jax.net.protocols import Message
from tests.net.conftest import HEARTBEAT_S

pytestmark = pytest.mark.parametrize(
    "swarm", ["local", "hivemind", "same_host"], indirect=True
)

DTYPES = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", ml_dtypes.bfloat16),
)


async def pair(swarm, service):
    """A caller, and a callee that serves ``service``."""
    caller, callee = await swarm.peer(), await swarm.peer()
    await callee.calls.serve(service)
    return caller, callee


async def until_answered(caller, callee) -> None:
    """Calls until the ban is over; the test's deadline bounds it."""
    while True:
        try:
            await caller.calls.call(callee.peer_id, do("echo"), timeout_s=10)
            return
        except PeerLost:
            await asyncio.sleep(0.02)


def do(name, *arrays, **header) -> Message:
    return Message({"do": name, **header}, arrays)


async def test_arrays_arrive_as_they_were(swarm, make_service):
    caller, callee = await pair(swarm, make_service())
    sent = [
        *(np.arange(6).reshape(2, 3).astype(dtype) for dtype in DTYPES),
        *(np.array(7, dtype) for dtype in DTYPES),
        *(np.zeros((0, 3), dtype) for dtype in DTYPES),
        np.zeros((2, 0, 5), np.float32),
        np.array([np.nan, -np.inf, -0.0], np.float32),
    ]
    answer = await caller.calls.call(callee.peer_id, do("echo", *sent), timeout_s=10)
    assert len(answer.arrays) == len(sent)
    for array, original in zip(answer.arrays, sent, strict=True):
        assert array.dtype == original.dtype
        assert array.shape == original.shape
        assert array.tobytes() == original.tobytes()
        assert not array.flags.writeable


async def test_headers_arrive_as_they_were(swarm, make_service):
    caller, callee = await pair(swarm, make_service())
    header = {
        "none": None,
        "bool": True,
        "int": -(2**63),
        "float": 0.1,
        "str": "gr\u00fc\u00dfe",
        "bytes": b"\x00\xff",
        "list": [1, [2.5, "x"], {}],
        "dict": {"inner": {"key": 1}, "by number": {3: [4]}},
    }
    answer = await caller.calls.call(callee.peer_id, Message(header), timeout_s=5)
    assert answer.header == {"sender": caller.peer_id, **header}
    assert list(answer.arrays) == []


async def test_a_refusal_comes_from_the_door(swarm, make_service):
    service = make_service()
    caller, callee = await pair(swarm, service)
    message = do("refuse", np.zeros(5_000_000, np.float32), why="busy")
    answer = await caller.calls.call(callee.peer_id, message, timeout_s=10)
    assert answer.header == {"refused": "busy"}
    specs = (("float32", (5_000_000,)),)
    assert service.admitted == [(caller.peer_id, dict(message.header), specs)]
    assert service.handled == 0
    # The stream is still in order behind the body that was dropped.
    answer = await caller.calls.call(callee.peer_id, do("echo"), timeout_s=10)
    assert answer.header["do"] == "echo"


@pytest.mark.parametrize("how", ["malformed", "malformed at the door"])
async def test_a_malformed_message_drops_its_sender(swarm, make_service, until, how):
    service = make_service()
    caller, callee = await pair(swarm, service)
    other = await swarm.peer()
    hanging = [
        asyncio.ensure_future(peer.calls.call(callee.peer_id, do("hang"), timeout_s=30))
        for peer in (caller, caller, caller, other)
    ]
    await until(lambda: service.hanging == 4)
    with pytest.raises(PeerLost):
        await caller.calls.call(callee.peer_id, do(how), timeout_s=10)
    for call in hanging[:3]:
        with pytest.raises(PeerLost):
            await call
    await until(lambda: service.cancelled == 3)
    assert not hanging[3].done()
    # It may come back with something better, when its ban is over.
    await until_answered(caller, callee)
    hanging[3].cancel()


@pytest.mark.parametrize("how", ["raise", "blame another"])
async def test_an_exception_of_the_handler_is_a_remote_error(swarm, make_service, how):
    caller, callee = await pair(swarm, make_service())
    with pytest.raises(RemoteError) as caught:
        await caller.calls.call(callee.peer_id, do(how), timeout_s=10)
    assert caught.value.peer == callee.peer_id
    assert "scripted" in caught.value.reason or "malformed" in caught.value.reason
    answer = await caller.calls.call(callee.peer_id, do("echo"), timeout_s=10)
    assert answer.header["do"] == "echo"


async def test_cancelling_a_call_cancels_its_handler(swarm, make_service, until):
    service = make_service()
    caller, callee = await pair(swarm, service)
    call = asyncio.ensure_future(
        caller.calls.call(callee.peer_id, do("hang"), timeout_s=30)
    )
    await until(lambda: service.hanging)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: service.cancelled)


async def test_running_out_of_time_cancels_the_handler(swarm, make_service, until):
    service = make_service()
    caller, callee = await pair(swarm, service)
    with pytest.raises(PeerTimeout) as caught:
        await caller.calls.call(callee.peer_id, do("hang"), timeout_s=0.2)
    assert caught.value.peer == callee.peer_id
    await until(lambda: service.cancelled)


async def test_the_death_of_the_caller_cancels_the_handler(swarm, make_service, until):
    service = make_service()
    caller, callee = await pair(swarm, service)
    call = asyncio.ensure_future(
        caller.calls.call(callee.peer_id, do("hang"), timeout_s=30)
    )
    await until(lambda: service.hanging)
    caller.kill()
    await until(lambda: service.cancelled)
    with pytest.raises(PeerLost):
        await call


async def test_heartbeats_keep_a_slow_call_alive(swarm, make_service):
    caller, callee = await pair(swarm, make_service())
    message = do("wait", seconds=5 * swarm.heartbeat_s)
    answer = await caller.calls.call(callee.peer_id, message, timeout_s=10)
    assert answer.header["do"] == "wait"


async def test_a_frozen_peer_is_noticed_by_its_silence(swarm, make_service, until):
    service = make_service()
    caller, callee = await pair(swarm, service)
    call = asyncio.ensure_future(
        caller.calls.call(callee.peer_id, do("hang"), timeout_s=30)
    )
    await until(lambda: service.hanging)
    callee.freeze()
    started_s = time.monotonic()
    with pytest.raises(PeerStalled) as caught:
        await call
    assert time.monotonic() - started_s < 10
    assert caught.value.peer == callee.peer_id
    with pytest.raises(PeerStalled):
        await caller.calls.call(callee.peer_id, do("echo"), timeout_s=30)
    callee.thaw()
    answer = await caller.calls.call(callee.peer_id, do("echo"), timeout_s=10)
    assert answer.header["do"] == "echo"


async def test_a_dead_peer_is_lost_at_once(swarm, make_service, until):
    service = make_service()
    caller, callee = await pair(swarm, service)
    call = asyncio.ensure_future(
        caller.calls.call(callee.peer_id, do("hang"), timeout_s=30)
    )
    await until(lambda: service.hanging)
    started_s = time.monotonic()
    callee.kill()
    with pytest.raises(PeerLost) as caught:
        await call
    assert caught.value.peer == callee.peer_id
    with pytest.raises(PeerLost):
        await caller.calls.call(callee.peer_id, do("echo"), timeout_s=30)
    assert time.monotonic() - started_s < 10


async def test_a_peer_that_does_not_serve_is_lost(swarm):
    caller, callee = await swarm.peer(), await swarm.peer()
    for peer in (callee.peer_id, "nobody", ""):
        with pytest.raises(PeerLost) as caught:
            await caller.calls.call(peer, do("echo"), timeout_s=10)
        assert caught.value.peer == peer


async def test_who_stood_still_does_not_take_the_other_for_silent(swarm, make_service):
    caller, callee = await pair(swarm, make_service())
    asked = asyncio.ensure_future(
        caller.calls.call(callee.peer_id, do("wait", seconds=1.0), timeout_s=30)
    )
    await asyncio.sleep(0.3)
    time.sleep(4 * HEARTBEAT_S)  # as in a process that was stopped
    assert (await asked).header


async def test_many_calls_at_once_get_their_own_answers(swarm, make_service):
    caller, callee = await pair(swarm, make_service())
    await caller.calls.serve(make_service())

    async def ask(one, other, number):
        array = np.full(1 + 997 * (number % 50), number, np.int32)
        message = do("wait", array, seconds=0.02 * (number % 3), number=number)
        answer = await one.calls.call(other.peer_id, message, timeout_s=30)
        assert answer.header["number"] == number
        np.testing.assert_array_equal(answer.arrays[0], array)

    await asyncio.gather(
        *(ask(caller, callee, number) for number in range(150)),
        *(ask(callee, caller, number) for number in range(150, 300)),
    )


async def test_a_large_message_does_not_hold_up_small_ones(swarm, make_service):
    caller, callee = await pair(swarm, make_service())
    large = np.random.default_rng(0).integers(0, 256, 20_000_000, np.uint8)
    sending = asyncio.ensure_future(
        caller.calls.call(callee.peer_id, do("echo", large), timeout_s=30)
    )
    for _ in range(3):
        await caller.calls.call(callee.peer_id, do("echo"), timeout_s=10)
    answer = await sending
    assert answer.arrays[0].tobytes() == large.tobytes()


async def test_closing_ends_calls_in_both_directions(swarm, make_service, until):
    services = make_service(), make_service()
    one, other = await pair(swarm, services[0])
    await one.calls.serve(services[1])
    calls = [
        asyncio.ensure_future(a.calls.call(b.peer_id, do("hang"), timeout_s=30))
        for a, b in ((one, other), (other, one))
    ]
    await until(lambda: services[0].hanging and services[1].hanging)
    await one.calls.close()
    for call in calls:
        with pytest.raises(PeerLost):
            await call
    await until(lambda: services[0].cancelled and services[1].cancelled)
    with pytest.raises(PeerLost):
        await one.calls.call(other.peer_id, do("echo"), timeout_s=5)
    with pytest.raises(PeerLost):
        await other.calls.call(one.peer_id, do("echo"), timeout_s=5)
