"""Whole streams under a fuzzer: both ends and a stage server, on virtual time.

An input is a little program: what the far end sends (good messages, damaged ones,
junk), cuts, waits, stops to read. Whatever it does, the end under test understands or
drops it, ends all handlers and gives all memory back.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Coroutine, Iterator
from typing import Any, get_args

import msgpack
import numpy as np

from models.config import GPTConfig
from scripts.fuzz_values import Program, packed
from swarm_jax.config import ExperimentConfig
from swarm_jax.core.closing import CommitRecord, Report
from swarm_jax.core.ids import MicrobatchID, Round
from swarm_jax.errors import BadMessage, PeerError
from swarm_jax.net.budget import Budget
from swarm_jax.net.callee import Callee
from swarm_jax.net.caller import Caller
from swarm_jax.net.frames import (
    FRAME_HEAD,
    MAX_CHUNK_BYTES,
    Kind,
    body_frames,
    encode,
    frame,
)
from swarm_jax.net.protocols import Message
from swarm_jax.roles.compute import Abandoned, Backward, Forward, Reduced
from swarm_jax.roles.messages import (
    MalformedHeader,
    Request,
    report_from_header,
    report_to_header,
    to_header,
)
from swarm_jax.sim.clock import VirtualTimeLoop
from swarm_jax.sim.data import RandomTokens
from swarm_jax.sim.swarm import SimulatedSwarm

MAX_BYTES = 1 << 16
MAX_TURNS = 2000
LOOP = VirtualTimeLoop()


class _Config(ExperimentConfig):
    """An experiment whose fingerprint costs nothing: each input starts a server."""

    def swarm_fingerprint(self) -> str:
        return "swarm"


def _config() -> ExperimentConfig:
    model = GPTConfig(
        num_layers=2,
        model_dim=4,
        num_heads=1,
        ffn_dim=4,
        vocab_size=257,
        sequence_length=4,
    )
    config = _Config(run_id="fuzz", steps=4, model=model)
    config.optimizer.warmup_steps = 1
    config.data.target_batch_size = 2
    config.swarm.num_stages = 2
    config.swarm.microbatch_size = 1
    config.validation.sequences = 1
    config.tuning.directory_refresh_s = 1000.0
    config.tuning.directory_expiry_s = 5000.0
    return config.check()


CONFIG = _config()
SWARM = CONFIG.swarm_fingerprint()
ROUND = Round(1, "trainer", 1)
X_BLD = np.zeros((1, 4, 4), np.float32)
TARGETS_BL = np.zeros((1, 4), np.int32)
SUM = [np.ones(3, np.float32)]

_SAMPLES = {
    "Round": ROUND,
    "MicrobatchID": MicrobatchID(0, 0),
    "int": 1,
    "bool": True,
    "str": "x",
    "float": 30.0,
    "float | None": 0.5,
    "frozenset[int]": frozenset({1}),
    "frozenset[str]": frozenset(),
    "dict[str, str]": {"stage1-0": "x"},
    "dict[int, float]": {0: 1.0},
    "dict[str, float]": {"final_train_loss": 1.0},
    "list[str]": ["0f", "0f"],
}
_ARRAYS = {"relay": [TARGETS_BL, X_BLD], "hand_over": SUM}


def _request(kind: type) -> dict[str, Any]:
    """A header of the kind, let in by a server of stage 1 that has just started."""
    fields = {f.name: _SAMPLES[f.type] for f in dataclasses.fields(kind)}
    fields |= {name: 0 for name in ("generation", "step", "index") if name in fields}
    return to_header(kind(**fields), SWARM)


_REPORT = report_to_header(
    Report(
        peer="peer",
        **{
            f.name: {
                "stage": 1,
                "state": "ONLINE",
                "step": 1,
                "lineage": "x",
                "counted": frozenset({0}),
                "early": frozenset({1}),
                "last_commit": CommitRecord(0, 0.5),
                "losses": {0: 1.0},
                "newest_heard": (0, 1),
                "saved": frozenset({1}),
                "folder": "x",
            }.get(f.name, 1 if "int" in str(f.type) else None)
            for f in dataclasses.fields(Report)
            if f.name != "peer"
        },
    )
)
REPLIES = [
    _REPORT,
    {"status": "old_round", "promise": [2, "trainer", 0]},
    {"status": "ok", "loss_sum": 1.0, "deeper_s": 0.1, "trace": [{"peer": "x"}]},
    {
        "status": "ok",
        "generation": 0,
        "step": 1,
        "lineage": "x",
        "last_commit": [0, 0.5],
        "chunks": ["a", "b"],
    },
]
HEADERS = [_request(kind) for kind in get_args(Request)] + REPLIES
MESSAGES = [Message(h, _ARRAYS.get(h.get("op", ""), [])) for h in HEADERS]
UNPACKED_HEADS = [
    msgpack.unpackb(encode(m, heartbeat_s=5.0, max_bytes=MAX_BYTES)[0])
    for m in MESSAGES
]
HEADS = [encode(m, heartbeat_s=5.0, max_bytes=MAX_BYTES)[0] for m in MESSAGES]


def _body(message: Message) -> bytes:
    _, views = encode(message, max_bytes=MAX_BYTES)
    return b"".join(b"".join(pieces) for pieces in body_frames(0, views))


_BODIES = [_body(message)[FRAME_HEAD.size :] for message in MESSAGES]
STREAMS = [
    frame(Kind.REQUEST, 1, head) + (frame(Kind.BODY, 1, body) if body else b"")
    for head, body in zip(HEADS, _BODIES, strict=True)
]
PROGRAMS = [bytes([1, n, 2, n, 6, 50]) for n in range(len(HEADS))] + [
    bytes([1, 0, 3, 1, 4, 1, 8, 0, 6, 200, 1, 0, 2, 0]),
    bytes([7, 0, 1, 0, 2, 0, 7, 1, 6, 255, 0, 3, 1, 2, 3]),
]


class _Transport:
    """Takes what the link writes, and reads it or not."""

    def __init__(self, link: Any):
        self._link = link
        self._closing = False
        self.unread = 0
        self.reads = True

    def write(self, data: bytes | memoryview) -> None:
        if not self.reads:
            self.unread += len(data)
            self._link.pause_writing()

    def read(self, on: bool) -> None:
        self.reads = on
        if on and self.unread:
            self.unread = 0
            self._link.resume_writing()

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return self.unread

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            LOOP.call_soon(self._link.connection_lost, None)


def receive(link: Any, data: bytes) -> None:
    """Fills the buffers of a link or decoder as a socket would."""
    left = memoryview(data)
    while left:
        buffer = link.get_buffer(-1) if hasattr(link, "peer") else link.get_buffer()
        count = min(len(buffer), len(left))
        buffer[:count] = left[:count]
        link.buffer_updated(count)
        left = left[count:]


async def _attack(link: Any, data: bytes, kind: Kind) -> None:
    """Runs a program against a link, then ends the stream."""
    program, next_id, heads = Program(data), 1, HEADS
    transport = link._transport = _Transport(link)
    for step in program.steps(11):
        stream = b""
        if step == 0:
            stream = program.take(program.byte())
        elif step == 1:
            stream = frame(kind, next_id, heads[program.byte() % len(heads)])
            next_id += 1
        elif step == 2:
            stream = frame(Kind.BODY, next_id - 1, _BODIES[program.byte() % len(heads)])
        elif step == 3:
            stream = frame(Kind.BODY, program.byte() % 8, program.take(program.byte()))
        elif step == 4:
            stream = frame(Kind.CANCEL, program.byte() % 8)
        elif step == 5:
            payload = program.take(program.byte())
            stream = FRAME_HEAD.pack(program.byte(), next_id, len(payload)) + payload
        elif step == 6:
            await asyncio.sleep(program.byte() / 8)
        elif step == 7:
            transport.read(bool(program.byte() % 2))
        elif step == 8:
            await asyncio.sleep(0)
        elif step == 9:
            stream = frame(kind, next_id, _damaged(program))
            next_id += 1
        elif step == 10:
            head = FRAME_HEAD.pack(program.byte() % 8, next_id, MAX_CHUNK_BYTES)
            stream = head[: program.byte() % 14]
        if link.lost:
            break
        if not transport._closing:
            receive(link, stream)
    transport.abort()
    transport.read(True)


def _damaged(program: Program) -> bytes:
    """A good head in which a byte or a value is something else."""
    if program.byte() % 2:
        head = bytearray(HEADS[program.byte() % len(HEADS)])
        head[program.byte() % len(head)] = program.byte()
        return bytes(head)
    return packed(program.take(16), UNPACKED_HEADS)


class _Findings(logging.Handler):
    """What must not happen, wherever it is reported."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.found: list[BaseException | str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.exc_info[1] if record.exc_info else record.msg)

    def in_loop(self, loop: asyncio.AbstractEventLoop, context: dict) -> None:
        self.found.append(context.get("exception") or context["message"])

    def check(self) -> None:
        found, self.found = self.found, []
        for what in found:
            raise AssertionError(f"reported: {what!r}") from (
                what if isinstance(what, BaseException) else None
            )


_findings = _Findings()
LOOP.set_exception_handler(_findings.in_loop)
_OURS = logging.getLogger("swarm_jax")
_LOUD = (logging.getLogger("swarm_jax.net.callee"), logging.getLogger("asyncio"))


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """Complaints are findings; what is only told is not written."""
    level = _OURS.level
    _OURS.setLevel(logging.ERROR)
    for logger in _LOUD:
        logger.addHandler(_findings)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in _LOUD:
            logger.removeHandler(_findings)
            logger.propagate = True
        _OURS.setLevel(level)


def _run(case: Coroutine[Any, Any, None]) -> None:
    with _listening():
        LOOP.run_until_complete(case)
    _findings.check()


class _Echo:
    """Answers some calls at once, some late, some never."""

    def admit(self, sender: str, header: Any, specs: Any) -> Message | None:
        if header.get("op") == "drop":
            raise BadMessage(sender, "malformed")
        return Message({"no": 1}) if header.get("op") == "commit" else None

    async def handle(self, sender: str, message: Message) -> Message:
        if message.header.get("op") == "collect":
            await asyncio.sleep(1.0)
        if message.header.get("op") == "resync":
            await asyncio.get_running_loop().create_future()
        return message


def callee(data: bytes) -> None:
    """The answering end, before a service that does all a service may do."""
    _run(_callee(_Echo(), data))


async def _callee(service: Any, data: bytes) -> None:
    budget = Budget(4 * MAX_BYTES)
    link = Callee("peer", service, max_message_bytes=MAX_BYTES, budget=budget)
    await _attack(link, data, Kind.REQUEST)
    for _ in range(MAX_TURNS):
        if link.lost and not link.tasks:
            break
        await asyncio.sleep(0)
    assert link.lost and link.is_idle
    assert not budget.used_bytes


def caller(data: bytes) -> None:
    """The asking end, and the reader of a report behind it."""
    _run(_caller(data))


async def _caller(data: bytes) -> None:
    budget = Budget(4 * MAX_BYTES)
    link = Caller("peer", heartbeat_s=5.0, max_message_bytes=MAX_BYTES, budget=budget)

    async def call() -> None:
        with contextlib.suppress(PeerError, MalformedHeader):
            answer = await link.call(Message({}), timeout_s=20.0)
            report_from_header("peer", answer.header)

    transport = link._transport = _Transport(link)
    calls = [asyncio.ensure_future(call()) for _ in range(3)]
    await asyncio.sleep(0)
    del transport
    await _attack(link, data, Kind.RESPONSE)
    await asyncio.wait(calls)
    for done in calls:
        done.result()
    assert not budget.used_bytes


class _Compute:
    """A device that does nothing, at once; it never raises of itself."""

    input_specs = gradient_specs = (("float32", X_BLD.shape),)
    sum_specs = state_specs = (("float32", SUM[0].shape),)
    tied_leaf = None
    queued = 0

    async def forward(self, x, *, keep, order, previous=0):
        return Forward([X_BLD], object(), True, 0.0)

    async def backward(self, residuals, grad_y, *, count, order):
        return self._counted(count, 0.0)

    async def loss_backward(self, x, targets, *, count, order, previous=0):
        return self._counted(count, 1.0)

    def _counted(self, count, loss_sum):
        if count is not None:
            if not count.start():
                raise Abandoned
            count.settle(True, loss_sum)
        return Backward([X_BLD], loss_sum, True, 0.0)

    async def loss(self, x, targets, *, order):
        return 1.0

    async def ready(self):
        pass

    async def gradient_sum(self, scale, tied_scale=None):
        return SUM

    async def previous_tied(self):
        return SUM[0]

    async def add_to_sum(self, gradients):
        return True

    async def load_reduced(self, gradients):
        return Reduced(1.0, "digest")

    async def reduce_alone(self, scale):
        return 1.0

    async def apply(self, gradient_norm):
        pass

    async def skip(self):
        pass

    def forget_previous(self):
        pass

    async def clear(self):
        pass

    async def state(self):
        return SUM

    async def load_state(self, state):
        pass

    async def reset(self):
        pass

    async def digest(self):
        return "x"

    def take_record(self):
        return {}

    def close(self):
        pass


def server(data: bytes) -> None:
    """A stage server behind the answering end; the device is modelled."""
    _run(_server(data))


async def _server(data: bytes) -> None:
    swarm = SimulatedSwarm(
        CONFIG,
        data=RandomTokens(CONFIG),
        make_compute=lambda stage: _Compute(),
        peers_per_stage=[0, 1],
    )
    peer = swarm.start_peer(1)
    await asyncio.sleep(0.01)
    try:
        await _callee(swarm.servers[peer], data)
    finally:
        running = swarm._tasks[peer]
        alive = not running.done()
        await swarm.kill(peer)
    assert alive, "the server ended"
