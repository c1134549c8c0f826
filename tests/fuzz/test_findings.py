"""What fuzzing found: each was an exception that got out, or a wait without end."""

import msgpack
import pytest

from scripts.fuzz_streams import CONFIG
from scripts.fuzz_targets import TARGETS
from swarm_jax.errors import BadMessage
from swarm_jax.net.frames import MAX_DEPTH, parse_head
from swarm_jax.net.hivemind_records import CheckedSerializer
from swarm_jax.roles.messages import MalformedHeader, from_header, report_from_header
from swarm_jax.roles.peers import _difference, _read

DEEP = b"\x91" * 1000 + b"\xc0"
FLOAT = b"\xcb" + b"\0" * 8


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("header", "2eea15c9c401010000000000"),
        ("header", "00df059d2200dc1b"),
        ("record", "ff82ffffffff"),
    ],
)
def test_inputs_that_were_findings_pass(name, data):
    TARGETS[name](bytes.fromhex(data))


@pytest.mark.parametrize("commit", [[], "", {}, [1], "x"])
def test_a_commit_record_that_is_too_short_is_malformed(commit):
    with pytest.raises(MalformedHeader):
        report_from_header("peer", {"last_commit": commit})


@pytest.mark.parametrize(
    "head",
    [
        b"\x94\x80\x91\x92" + DEEP + b"\x90\x00" + FLOAT,
        b"\x94\x80\x91\x92\xa4int8" + DEEP + b"\x00" + FLOAT,
        b"\x94\x81\xa5round" + DEEP + b"\x90\x00" + FLOAT,
        b"\x94\x80\x90" + DEEP + FLOAT,
        b"\x94\x80\x90\x00" + DEEP,
    ],
)
def test_a_head_that_is_nested_too_deeply_to_be_shown_is_malformed(head):
    with pytest.raises(BadMessage):
        parse_head("peer", head)


def test_a_header_may_be_nested_as_deep_as_it_says():
    value = 0
    for _ in range(MAX_DEPTH - 2):
        value = [value]
    head = msgpack.packb([{"x": value}, [], 0, 0.0])
    assert parse_head("peer", head).header == {"x": value}
    with pytest.raises(BadMessage, match="deep"):
        parse_head("peer", msgpack.packb([{"x": [value]}, [], 0, 0.0]))


def test_a_request_that_is_nested_too_deeply_to_be_shown_is_malformed():
    for packed in (b"\xa2op\xa7collect\xa5round" + DEEP, b"\xa1x\x00\xa2op" + DEEP):
        with pytest.raises(MalformedHeader):
            from_header(msgpack.unpackb(b"\x82" + packed))


@pytest.mark.parametrize("names", [{1: "x", "a": "y"}, {b"a": 1, "b": 2}, {"a": [1]}])
def test_settings_of_another_experiment_may_be_anything(names):
    assert "Another experiment" in _difference(CONFIG, names)


@pytest.mark.parametrize(
    "field",
    [
        {"tokens_per_s": float("nan")},
        {"tokens_per_s": float("inf")},
        {"tokens_per_s": -1.0},
        {"step": True},
        {"queue": -1},
        {"name": "x" * 1000},
        {"state": "x" * 1000},
    ],
)
def test_absurd_values_make_no_record(field):
    good = {
        "name": "n",
        "stage": 1,
        "state": "ONLINE",
        "generation": 0,
        "step": 1,
        "queue": 0,
        "tokens_per_s": 1.0,
    }
    assert _read(good, 1) is not None
    assert _read(good | field, 1) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\xc7\x01\x50\x01",
        b"\xc7\x04\x50\x93\x00\xc0\x90",
        b"\xc7\x05\x50\x93\xa1x\x00\x90",
        b"\xc7\x06\x50\x93\x00\x00\x91\x01",
        b"\xc7\x02\x40\x91\x01",
        b"\x81\x90\x00",
    ],
)
def test_what_is_no_dht_record_is_a_value_error(data):
    with pytest.raises(ValueError):
        CheckedSerializer.loads(data)
