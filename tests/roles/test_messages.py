"""Headers: what is sent is read back, what is malformed is refused."""

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_jax.core.ids import MicrobatchID, Round
from swarm_jax.core.reports import CommitRecord, Report
from swarm_jax.roles.messages import (
    Collect,
    Commit,
    DropSum,
    FetchChunk,
    FetchManifest,
    FetchTied,
    HandOver,
    Locate,
    MalformedHeader,
    Prepare,
    Relay,
    RestartRun,
    ResyncState,
    Watch,
    from_header,
    report_from_header,
    report_to_header,
    to_header,
)

ROUND = Round(3, "trainer", 17)
REQUESTS = [
    Relay(
        round=ROUND,
        generation=1,
        stage=1,
        id=MicrobatchID(5, 2),
        counted_by=frozenset({0, 2}),
        training=True,
        avoid=frozenset({"peer"}),
        budget_s=12.5,
    ),
    Collect(round=ROUND),
    DropSum(round=ROUND, generation=2, step=5),
    Prepare(
        round=ROUND,
        generation=2,
        step=5,
        group={"a": "0f", "b": "1e"},
        tied=frozenset({"a", "b", "c"}),
        donors=[],
        loss_tokens=4096,
    ),
    Commit(round=ROUND, generation=2, step=5, gradient_norm=0.25),
    Commit(round=ROUND, generation=2, step=5, gradient_norm=None),
    ResyncState(round=ROUND),
    RestartRun(round=ROUND, generation=1, step=0),
    Watch(for_s=2.5),
    Locate(),
    FetchManifest(stage=2),
    FetchChunk(stage=2, digest="0f", index=3),
    FetchTied(generation=1, step=5),
    HandOver(
        round=ROUND,
        generation=1,
        stage=2,
        step=5,
        lineage="0f",
        losses={3: 1.5, 1: 0.0},
    ),
    HandOver(round=ROUND, generation=0, stage=2, step=5, lineage="", losses={}),
]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def travel(header):
    return msgpack.unpackb(msgpack.packb(header), strict_map_key=False)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_requests_survive_the_wire(request_):
    assert from_header(travel(to_header(request_, "swarm"))) == request_


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_no_field_may_be_absent(request_):
    for name in [f.name for f in dataclasses.fields(request_)]:
        header = to_header(request_, "swarm")
        del header[name]
        with pytest.raises(MalformedHeader, match=name):
            from_header(header)


@given(st.sampled_from([r for r in REQUESTS if dataclasses.fields(r)]), st.data(), JUNK)
def test_junk_in_a_field_is_refused_or_of_the_right_type(request_, data, junk):
    name = data.draw(st.sampled_from([f.name for f in dataclasses.fields(request_)]))
    try:
        read = from_header(to_header(request_, "swarm") | {name: junk})
    except MalformedHeader:
        return
    was, now = getattr(request_, name), getattr(read, name)
    assert type(now) is type(was) or None in (was, now) or name == "gradient_norm"


@given(st.dictionaries(st.text(), JUNK))
def test_junk_headers_are_refused(header):
    with pytest.raises(MalformedHeader):
        from_header(header)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget_s", float("nan")),
        ("budget_s", -1.0),
        ("stage", -1),
        ("stage", 1.0),
        ("stage", True),
        ("id", [1]),
        ("id", [1, 2, 3]),
        ("round", [1, "x" * 1000, 0]),
        ("training", 1),
        ("counted_by", ["0"]),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(MalformedHeader, match=name):
        from_header(to_header(REQUESTS[0], "swarm") | {name: value})


def test_reports_survive_the_wire():
    report = Report(
        peer="a",
        stage=1,
        state="ONLINE",
        step=4,
        lineage="abc",
        generation=2,
        can_replay=True,
        early=frozenset({7}),
        counted=frozenset({2, 0}),
        prepared_step=4,
        last_commit=CommitRecord(3, None),
        losses={0: 1.5, 2: 2.5},
        newest_heard=(2, 5),
    )
    assert report_from_header("a", travel(report_to_header(report))) == report
    bare = dataclasses.replace(
        report, prepared_step=None, last_commit=None, losses=None
    )
    assert report_from_header("a", travel(report_to_header(bare))) == bare
