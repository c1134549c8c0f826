"""Everything that parses bytes of the network, as functions of bytes.

``scripts.fuzz`` drives them by coverage, ``tests/fuzz`` with hypothesis. A target
returns, or raises what is a finding: any exception but the two that tell malformed
input, ``BadMessage`` and ``MalformedHeader``, or an assertion of its own.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np

from scripts import fuzz_streams, fuzz_values
from scripts.fuzz_values import packed
from swarm_jax.core.closing import ONLINE
from swarm_jax.errors import AllReduceVoid, BadMessage
from swarm_jax.net import hivemind_records as records
from swarm_jax.net.decoder import FrameDecoder
from swarm_jax.net.frames import IncomingBody, Kind, encode, parse_head
from swarm_jax.net.hivemind_allreduce import HivemindAllReduce, _mean_in, _Round
from swarm_jax.net.hivemind_butterfly import ExactReducer, ExactRunner
from swarm_jax.net.parts import PART_CODECS, PartCodec
from swarm_jax.net.protocols import Message
from swarm_jax.roles.lease import _is_claim
from swarm_jax.roles.messages import (
    MalformedHeader,
    commit_from_header,
    from_header,
    read,
    report_from_header,
    to_header,
)
from swarm_jax.roles.peers import PeerRecord, _difference, _read
from swarm_jax.roles.snapshots import manifest_from_header

_TEMPLATES: dict[str, list[Any]] = {
    "head": fuzz_streams.UNPACKED_HEADS,
    "header": fuzz_streams.HEADERS,
    "record": [
        asdict(
            PeerRecord(
                name="n",
                stage=1,
                state=ONLINE,
                generation=0,
                step=3,
                queue=0,
                tokens_per_s=1.5,
            )
        ),
        {
            "number": 3,
            "leads": True,
            "data_digest": "d",
            "generation": 0,
            "step": 2,
            "last_commit": [1, 0.5],
        },
        ["/ip4/10.0.0.1/tcp/80/p2p/x", "/dns4/x/tcp/1"],
        {"seed": "1", "model": "x"},
    ],
    "dht": [[math.inf, 2e9, [["me", b"\xc0", 2e9], ["x", b"x", 0.0]]], "x"],
    "allreduce": [
        *({"group": g, "digest": b"d", "part": p} for g in "gox" for p in (0, 1)),
        {"void": ["peer", "other"], "reason": "r"},
    ],
}
"""What well-formed values of a target look like, before they are packed."""

MAX_BYTES = fuzz_streams.MAX_BYTES
CONFIG = fuzz_streams.CONFIG


class _Sink:
    """Takes bodies in as both ends do, and has no opinion on the order of frames."""

    def __init__(self):
        self.bodies: dict[int, IncomingBody] = {}

    def body_of(self, call_id: int) -> IncomingBody | None:
        return self.bodies.get(call_id)

    def on_frame(self, kind: Kind, call_id: int, payload: bytearray) -> None:
        if kind in (Kind.REQUEST, Kind.RESPONSE):
            head = parse_head("peer", payload)
            if head.body_bytes <= MAX_BYTES:
                self.bodies[call_id] = IncomingBody(head.specs)


def decoder(data: bytes) -> None:
    """A stream; its first byte says in which steps it comes."""
    step, stream = data[0] + 1 if data else 1, data[1:]
    decoder = FrameDecoder("peer", _Sink())
    with contextlib.suppress(BadMessage):
        for start in range(0, len(stream), step):
            fuzz_streams.receive(decoder, stream[start : start + step])


def head(data: bytes) -> None:
    """The payload of a REQUEST or RESPONSE frame; what passes can be received."""
    payload = packed(data, _TEMPLATES["head"])
    with contextlib.suppress(BadMessage):
        head = parse_head("peer", payload)
        if head.body_bytes <= MAX_BYTES:
            body = IncomingBody(head.specs)
            assert body.missing_bytes == head.body_bytes
            while body.missing_bytes:
                body.advance(len(body.room()))
            encode(Message(head.header, body.finish()), max_bytes=MAX_BYTES)


def _unpacked(data: bytes, name: str) -> Any:
    try:
        return msgpack.unpackb(packed(data, _TEMPLATES[name]), strict_map_key=False)
    except (ValueError, TypeError):
        return None


_FIELDS = [("promise", "Round"), ("peers", "frozenset[str]"), ("deeper_s", "float")]


def header(data: bytes) -> None:
    """A header that passed ``parse_head``: every reader of requests and replies."""
    header = _unpacked(data, "header")
    if not isinstance(header, dict) or not all(isinstance(k, str) for k in header):
        return
    with contextlib.suppress(MalformedHeader):
        request = from_header(header)
        assert from_header(to_header(request, "swarm")) == request
    readers = (
        lambda: report_from_header("peer", header),
        lambda: commit_from_header(header),
        lambda: manifest_from_header(header, 2),
        *(lambda name=name, t=t: read(header, name, t) for name, t in _FIELDS),
    )
    for reader in readers:
        with contextlib.suppress(MalformedHeader):
            reader()


def record(data: bytes) -> None:
    """A value in the directory, whoever wrote it."""
    value = _unpacked(data, "record")
    for stage in (0, 1):
        found = _read(value, stage)
        assert found is None or isinstance(found, PeerRecord) and found.stage == stage
    assert _is_claim(value) in (True, False)
    assert len(records.addresses_in(value)) <= records.MAX_ADDRESSES
    if isinstance(value, dict):
        _difference(CONFIG, value)


_KEY = records.DHTID.generate("key").to_bytes()


def dht(data: bytes) -> None:
    """A record as another DHT node sends it, whole dictionaries among them."""
    data = packed(data, _TEMPLATES["dht"])
    if data[:1] == b"\x93":  # The list of a dictionary: put it into its extension.
        data = msgpack.packb(msgpack.ExtType(records.DICTIONARY, data))
    try:
        value = records.CheckedSerializer.loads(data)
    except ValueError:
        value = None
    if isinstance(value, records.DictionaryDHTValue):
        with value.freeze():
            max(value.maxsize, value.latest_expiration_time)
            for subkey, entry in value.items():
                sent = records.DHTRecord(
                    _KEY,
                    records.MSGPackSerializer.dumps(subkey),
                    entry.value,
                    entry.expiration_time,
                )
                if records.RecordGuard().validate(sent):
                    records.CheckedSerializer.loads(entry.value)
    now_s = records.get_dht_time()
    for expires_s in (now_s + 60, float("inf"), float("nan")):
        records.RecordGuard().validate(
            records.DHTRecord(_KEY, data[:64], data, expires_s)
        )
    records.entries_of(records.ValueWithExpiration(value, now_s))


_PEERS = ("me", "peer")
_SIZES = 4, 2


def allreduce(data: bytes) -> None:
    """A part of a round, at the door and behind it, and a mean that came back."""
    header = _unpacked(data, "allreduce")
    if not isinstance(header, dict) or not all(isinstance(k, str) for k in header):
        return
    for codec in PART_CODECS.values():
        parts = [_part(codec, size, data) for size in _SIZES]
        fuzz_streams.LOOP.run_until_complete(_allreduce(header, codec, parts))


def _part(codec: PartCodec, size: int, data: bytes) -> list[np.ndarray]:
    """A part of so many values that is made of these bytes."""
    octets = np.frombuffer(data or bytes(1), np.uint8)
    arrays = [np.zeros(shape, dtype) for dtype, shape in codec.specs(size)]
    return [np.resize(octets, array.nbytes).view(array.dtype) for array in arrays]


async def _allreduce(
    header: dict[str, Any], codec: PartCodec, parts: list[list[np.ndarray]]
) -> None:
    node = SimpleNamespace(peer_id="me")
    service = HivemindAllReduce(node, None, 0.5, codec)
    reducer = ExactReducer(list(_SIZES), 2, codec)
    runner = SimpleNamespace(tensor_part_reducer=reducer, _peers=_PEERS)

    async def aggregate(*arguments):
        return await ExactRunner.aggregate(runner, *arguments)

    runner.aggregate = aggregate
    service._rounds["g"] = _Round(b"d", _PEERS, runner)
    service._over["o"] = AllReduceVoid((), "over")
    runner.tensor_part_reducer.add(0, 0, np.zeros(_SIZES[0], np.float32))
    for size, part in zip(_SIZES, parts, strict=True):
        with contextlib.suppress(BadMessage):
            if service.admit("peer", header, codec.specs(size)) is None:
                # Without the others' parts it waits, as long as its caller does.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2.0):
                        await service.handle("peer", Message(header, part))
    with contextlib.suppress(BadMessage, AllReduceVoid):
        _mean_in(Message(header, parts[0]), "peer", _SIZES[0], _PEERS, codec)
    runner.tensor_part_reducer.finalize()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decoder": decoder,
    "head": head,
    "header": header,
    "record": record,
    "dht": dht,
    "allreduce": allreduce,
    "callee": fuzz_streams.callee,
    "caller": fuzz_streams.caller,
    "server": fuzz_streams.server,
}


def seeds(name: str) -> list[bytes]:
    """Well-formed inputs of a target, to mutate."""
    if name in _TEMPLATES:
        return fuzz_values.seeds(_TEMPLATES[name])
    if name == "decoder":
        return [bytes([99]) + stream for stream in fuzz_streams.STREAMS]
    return fuzz_streams.PROGRAMS
