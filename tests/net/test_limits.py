"""What a hostile end of a stream cannot do: grow our memory, or keep it for nothing."""

import asyncio
import gc
import socket
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest

from swarm_jax.errors import PeerLost, RemoteError
from swarm_jax.net.budget import Budget
from swarm_jax.net.callee import Callee
from swarm_jax.net.caller import Caller
from swarm_jax.net.frames import FRAME_HEAD, Kind, body_frames, encode, frame
from swarm_jax.net.progress import MIN_PROGRESS_BYTES, Progress
from swarm_jax.net.protocols import Message
from swarm_jax.net.wire import HEAD_WEIGHT, MAX_TASKS
from swarm_jax.sim.clock import run_virtual

MAX_BYTES = 1 << 20
BUSY = Message({"status": "busy"})


def request(call_id=1, message=None) -> bytes:
    head, _ = encode(message or Message({}), heartbeat_s=5.0, max_bytes=1 << 40)
    return frame(Kind.REQUEST, call_id, head)


def bodies(call_id: int, message: Message) -> bytes:
    _, views = encode(message, max_bytes=1 << 40)
    return b"".join(b"".join(pieces) for pieces in body_frames(call_id, views))


LARGE = Message({"do": "echo"}, [np.zeros(MAX_BYTES, np.uint8)])


@pytest.fixture
def hostile(runner, make_service):
    """``await hostile(**settings)``: a callee, its budget, and the far end, raw."""
    ends = []

    async def make(**settings):
        ours, theirs = socket.socketpair()
        budget = Budget(8 * MAX_BYTES)
        service = make_service()
        settings = {"budget": budget, "busy": BUSY, **settings}
        callee = Callee("raw", service, max_message_bytes=MAX_BYTES, **settings)
        await callee.attach(*await asyncio.open_connection(sock=ours))
        reader, writer = await asyncio.open_connection(sock=theirs)
        ends.append((callee, writer))
        return SimpleNamespace(
            callee=callee, budget=budget, reader=reader, writer=writer, service=service
        )

    yield make

    async def close():
        for callee, writer in ends:
            callee.abort()
            writer.transport.abort()
        await asyncio.sleep(0)

    runner.run(close())


async def read_frame(reader) -> tuple[Kind, int, bytes]:
    kind, call_id, size = FRAME_HEAD.unpack(await reader.readexactly(FRAME_HEAD.size))
    return Kind(kind), call_id, await reader.readexactly(size)


async def test_announced_bodies_take_no_more_than_the_budget(hostile):
    end = await hostile()
    for call_id in range(1, 101):
        end.writer.write(request(call_id, LARGE))
    for _ in range(96):
        kind, _, payload = await read_frame(end.reader)
        assert kind is Kind.RESPONSE
        assert msgpack.unpackb(payload)[0] == BUSY.header
    assert end.budget.used_bytes < 5 * MAX_BYTES
    # The stream is in order, and what finds room is served.
    end.writer.write(request(101, Message({"do": "echo"})))
    assert (await read_frame(end.reader))[:2] == (Kind.RESPONSE, 101)


@pytest.mark.parametrize("how", ["cancel", "end", "complete", "refuse", "raise"])
async def test_room_comes_back_whatever_way_a_call_ends(hostile, until, how):
    end = await hostile()
    do = {"refuse": "refuse", "raise": "raise"}.get(how, "echo")
    message = Message({"do": do}, LARGE.arrays)
    end.writer.write(request(1, message))
    if how != "refuse":
        await until(lambda: end.budget.used_bytes > MAX_BYTES)
    if how == "cancel":
        end.writer.write(frame(Kind.CANCEL, 1))
    elif how == "end":
        end.writer.transport.abort()
    elif how != "refuse":
        end.writer.write(bodies(1, message))
        reading = asyncio.ensure_future(end.reader.read(4 * MAX_BYTES))
        await reading
        end.writer.transport.abort()
    await until(lambda: end.service.admitted)
    await until(lambda: not end.budget.used_bytes)


async def test_a_handler_that_hangs_keeps_its_room_until_it_ends(hostile, until):
    end = await hostile()
    message = Message({"do": "hang"}, LARGE.arrays)
    end.writer.write(request(1, message) + bodies(1, message))
    await until(lambda: end.service.hanging)
    assert end.budget.used_bytes > MAX_BYTES
    end.writer.write(frame(Kind.CANCEL, 1))
    await until(lambda: end.service.cancelled)
    await until(lambda: not end.budget.used_bytes)


async def test_heads_count_by_what_they_unpack_to(hostile):
    end = await hostile()
    small = 2000
    header = {"do": "hang", "junk": [{}] * small}
    end.writer.write(request(1, Message(header)))
    end.writer.write(request(2, Message({"do": "echo"})))
    while (await read_frame(end.reader))[1] != 2:
        pass
    assert end.budget.used_bytes > HEAD_WEIGHT * small


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        request(1)[:-1],
        FRAME_HEAD.pack(Kind.REQUEST, 1, 1 << 20) + b"x",
        request(1, LARGE),
        request(1, LARGE) + bodies(1, LARGE)[:1000],
        request(1) + FRAME_HEAD.pack(Kind.BODY, 1, 10),
    ],
    ids=[
        "nothing", "a byte", "half a head", "a large head", "no body", "some body",
        "a body of nobody",
    ],
)  # fmt: skip
async def test_who_stops_in_the_middle_is_dropped_and_frees_its_memory(
    hostile, until, data
):
    banned = []
    end = await hostile(stall_s=0.1, on_bad=lambda: banned.append(True))
    end.writer.write(data)
    await until(lambda: end.callee.lost)
    assert banned
    await until(lambda: not end.budget.used_bytes)


async def test_a_slow_loris_is_dropped(hostile, until):
    end = await hostile(stall_s=0.2)
    end.writer.write(request(1, LARGE))
    body = bodies(1, LARGE)
    sent = 0
    while not end.callee.lost:
        end.writer.write(body[sent : sent + 1])
        sent += 1
        await asyncio.sleep(0.005)
    await until(lambda: not end.budget.used_bytes)
    assert end.service.handled == 0


async def test_who_never_reads_its_answers_is_dropped(hostile, until):
    end = await hostile(stall_s=0.2, budget=Budget(64 * MAX_BYTES))
    end.writer.transport.pause_reading()
    for call_id in range(1, 9):
        end.writer.write(request(call_id, LARGE) + bodies(call_id, LARGE))
    await until(lambda: end.callee.lost)
    assert end.service.handled == 8
    await until(lambda: end.callee.is_idle)


async def test_an_idle_stream_stays(hostile, until):
    end = await hostile(stall_s=0.02)
    end.writer.write(request(1, Message({"do": "echo"})))
    await read_frame(end.reader)
    await asyncio.sleep(0.2)
    end.writer.write(request(2, Message({"do": "echo"})))
    assert (await read_frame(end.reader))[1] == 2


async def test_a_flood_of_cancelled_calls_is_bounded(hostile, until):
    released = asyncio.Event()

    class Stubborn:
        tasks = 0

        def admit(self, sender, header, specs):
            return None

        async def handle(self, sender, message):
            self.tasks += 1
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                await released.wait()
                raise

    end = await hostile()
    stubborn = end.callee._service = Stubborn()
    for call_id in range(1, 3 * MAX_TASKS):
        end.writer.write(request(call_id))
        if call_id % 50 == 0:
            await until(lambda n=call_id: end.callee.lost or stubborn.tasks >= n)
            for old in range(call_id - 49, call_id + 1):
                end.writer.write(frame(Kind.CANCEL, old))
        if end.callee.lost:
            break
    assert end.callee.lost
    assert stubborn.tasks <= MAX_TASKS
    released.set()
    await until(lambda: end.callee.is_idle)


async def test_a_flood_of_cancels_and_unwanted_bodies_leaves_nothing(hostile):
    end = await hostile()
    end.writer.write(request(1, Message({"do": "echo"})))
    await read_frame(end.reader)
    gc.collect()
    junk = frame(Kind.CANCEL, 1) + frame(Kind.BODY, 1, b"x" * 100)
    for _ in range(200):
        end.writer.write(junk * 10)
        await end.writer.drain()
    end.writer.write(request(2, Message({"do": "echo"})))
    assert (await read_frame(end.reader))[1] == 2
    assert end.callee.is_idle or len(end.callee._calls) <= 1
    assert end.budget.used_bytes < 64 * 1024


async def test_answers_that_find_no_room_end_their_calls(runner):
    ours, theirs = socket.socketpair()
    caller = Caller(
        "raw",
        heartbeat_s=5.0,
        max_message_bytes=MAX_BYTES,
        budget=Budget(3 * MAX_BYTES // 2),
    )
    await caller.attach(*await asyncio.open_connection(sock=ours))
    reader, writer = await asyncio.open_connection(sock=theirs)
    calls = [
        asyncio.ensure_future(caller.call(Message({}), timeout_s=30)) for _ in range(2)
    ]
    for _ in calls:
        await read_frame(reader)
    head, _ = encode(
        Message({}, [np.zeros(MAX_BYTES - 1000, np.uint8)]), max_bytes=MAX_BYTES
    )
    writer.write(frame(Kind.RESPONSE, 1, head) + frame(Kind.RESPONSE, 2, head))
    with pytest.raises(RemoteError, match="no room"):
        await calls[1]
    assert not calls[0].done()
    writer.transport.abort()
    with pytest.raises(PeerLost):
        await calls[0]
    assert not caller._budget.used_bytes


def test_progress_counts_and_total_time_does_not():
    """A message of 16 MiB at 1 Mbit/s takes longer than several deadlines."""

    async def main():
        moved, stalled = 0, []
        progress = Progress(lambda: [("body", moved)], stalled.append, 30.0)
        for _ in range(135):
            await asyncio.sleep(1.0)
            moved += 125_000
        assert not stalled
        await asyncio.sleep(90.0)
        assert stalled == ["body"]
        progress.stop()

    run_virtual(main())


@pytest.mark.parametrize("per_look", [MIN_PROGRESS_BYTES - 1, MIN_PROGRESS_BYTES])
def test_the_least_progress(per_look):
    async def main():
        looks, stalled = 0, []

        def owed():
            nonlocal looks
            looks += 1
            return [("body", looks * per_look)]

        progress = Progress(owed, stalled.append, 30.0)
        await asyncio.sleep(100.0)
        progress.stop()
        assert bool(stalled) == (per_look < MIN_PROGRESS_BYTES)

    run_virtual(main())


def test_a_look_that_comes_late_proves_nothing():
    async def main():
        stalled = []
        progress = Progress(lambda: [("body", 0)], stalled.append, 30.0)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(35.0)
        loop._now_s += 100.0  # As if the process had been stopped.
        await asyncio.sleep(1.0)
        assert not stalled
        await asyncio.sleep(30.0)
        assert stalled
        progress.stop()

    run_virtual(main())
