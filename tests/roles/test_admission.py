"""What a stage server lets in at the door, and what it says to the rest."""

import asyncio
import functools
from dataclasses import replace

import numpy as np
import pytest

from swarm_jax.core.ids import MicrobatchID, Round
from swarm_jax.errors import BadMessage
from swarm_jax.net.protocols import Message
from swarm_jax.roles.messages import (
    Collect,
    Commit,
    DropSum,
    FetchManifest,
    FetchTied,
    Prepare,
    Relay,
    RestartRun,
    SaveState,
    Status,
    to_header,
)
from swarm_jax.sim.clock import run_virtual

ROUND = Round(1, "trainer", 1)
PREPARE = Prepare(
    round=ROUND,
    generation=0,
    step=0,
    group={"peer": "0f"},
    tied=frozenset(),
    donors=[],
    loss_tokens=8,
)
SPECS = [("int32", (2, 4)), ("float32", (2, 4, 8))]


def relay(config, swarm=None, **fields):
    defaults = {
        "round": ROUND,
        "generation": 0,
        "stage": 1,
        "id": MicrobatchID(0, 0),
        "counted_by": frozenset({1}),
        "training": True,
        "avoid": frozenset(),
        "budget_s": 60.0,
    }
    return to_header(Relay(**defaults | fields), swarm or config.swarm_fingerprint())


@pytest.fixture
def server(config, make_swarm):
    async def start():
        swarm = make_swarm(config, [0, 0, 0])
        return swarm.servers[swarm.start_peer(1)]

    return run_virtual(start())


def test_a_good_request_is_let_in(config, server):
    assert server.admit("peer", relay(config), SPECS) is None


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"stage": 2}, Status.WRONG_STAGE),
        ({"id": MicrobatchID(7, 0)}, Status.WRONG_STEP),
        ({"generation": 1}, Status.WRONG_STEP),
        ({"swarm": "another"}, Status.WRONG_SWARM),
    ],
)
def test_who_came_to_the_wrong_place_is_told_so(config, server, fields, status):
    answer = server.admit("peer", relay(config, **fields), SPECS)
    assert answer.header["status"] == status


def test_an_older_round_is_refused_with_the_promise(config, server):
    server.state.promise_to(Round(2, "other", 0))
    answer = server.admit("peer", relay(config), SPECS)
    assert answer.header["status"] == Status.OLD_ROUND
    assert answer.header["promise"] == [2, "other", 0]


@pytest.mark.parametrize(
    "specs",
    [
        [],
        [("int32", (2, 4))],
        [("int32", (2, 4)), ("float64", (2, 4, 8))],
        [("int32", (2, 4)), ("float32", (4, 4, 8))],
        [("int64", (2, 4)), ("float32", (2, 4, 8))],
    ],
)
def test_a_wrong_dtype_or_shape_drops_the_sender(config, server, specs):
    with pytest.raises(BadMessage, match="stage 1, which takes .*is its config the"):
        server.admit("peer", relay(config), specs)


def test_a_microbatch_that_does_not_exist_drops_the_sender(config, server):
    with pytest.raises(BadMessage, match="there is no microbatch 6"):
        server.admit("peer", relay(config, id=MicrobatchID(0, 6)), SPECS)


def test_a_malformed_header_drops_the_sender(config, server):
    with pytest.raises(BadMessage, match="field 'round'"):
        server.admit("peer", relay(config) | {"round": "now"}, SPECS)


def test_arrays_where_none_belong_drop_the_sender(config, server):
    header = to_header(Collect(round=ROUND), config.swarm_fingerprint())
    with pytest.raises(BadMessage, match="collect carries no arrays"):
        server.admit("peer", header, SPECS)


def test_a_step_without_loss_tokens_drops_the_sender(config, server):
    """Nobody divides by zero."""
    prepare = replace(PREPARE, loss_tokens=0)
    with pytest.raises(BadMessage, match="without loss tokens"):
        server.admit("peer", to_header(prepare, config.swarm_fingerprint()), [])


def test_a_tied_table_where_there_is_none_was_meant_for_another_stage(config, server):
    """The leader took this peer for one of a stage that it has left."""
    header = functools.partial(to_header, swarm=config.swarm_fingerprint())
    assert server.admit("peer", header(PREPARE), []) is None
    for elsewhere in ({"tied": frozenset({"peer"})}, {"donors": ["peer"]}):
        refused = server.admit("peer", header(replace(PREPARE, **elsewhere)), [])
        assert refused.header["status"] == Status.WRONG_STAGE


def test_who_is_not_on_the_allow_list_is_dropped(config, server):
    server._authorised = lambda peer: peer == "friend"
    assert server.admit("friend", relay(config), SPECS) is None
    with pytest.raises(BadMessage, match="allow-list"):
        server.admit("stranger", relay(config), SPECS)


def test_who_has_left_refuses_what_needs_its_device(config, make_swarm):
    """Its device is closed: it may be on its way to another stage."""

    async def ask(requests):
        swarm = make_swarm(config, [0, 0, 0])
        server = swarm.servers[swarm.start_peer(1)]
        await asyncio.sleep(1)
        await server.leave()
        server.state.step, server.state.can_replay = 1, True
        for read in ("state", "previous_tied", "gradient_sum", "clear", "apply"):
            setattr(server._compute, read, None)
        return [
            await server.handle("peer", Message(to_header(request, "swarm")))
            for request in requests
        ]

    at = {"generation": 0, "step": 1}
    requests = [
        SaveState(round=ROUND, **at),
        FetchTied(generation=0, step=0),
        FetchManifest(stage=1),
        DropSum(round=ROUND, **at),
        replace(PREPARE, step=1),
        Commit(round=ROUND, gradient_norm=1.0, **at),
        RestartRun(round=ROUND, generation=1, step=0),
    ]
    answers = run_virtual(ask(requests))
    statuses = {answer.header["status"] for answer in answers}
    assert statuses == {Status.NOT_ONLINE}


def test_a_full_server_answers_busy(config, make_swarm):
    config.tuning.max_queue = 1

    async def main():
        swarm = make_swarm(config, [1, 1, 1])
        totals = await swarm.run()
        return totals

    assert run_virtual(main()).microbatches.exact


def test_tokens_outside_the_vocabulary_drop_the_sender(config, server):
    targets = np.full((2, 4), config.model.vocab_size, np.int32)
    message_header = relay(config)

    async def send():
        x_BLD = np.zeros((2, 4, 8), np.float32)
        await server.handle("peer", Message(message_header, [targets, x_BLD]))

    with pytest.raises(BadMessage, match="outside the vocabulary"):
        run_virtual(send())
