"""The oracle sees: each thing that it asks for, taken away."""

import asyncio

import numpy as np
import pytest

from swarm_jax.core.stage_state import StageState
from swarm_jax.roles.joining import Joining
from swarm_jax.roles.leader import Leader
from swarm_jax.roles.relaying import Relaying
from swarm_jax.roles.snapshots import Snapshots
from swarm_jax.roles.stage_control import StageControl
from swarm_jax.roles.stage_server import StageServer
from swarm_jax.sim.chaos import run_schedule
from swarm_jax.sim.faults import Fault, Schedule
from swarm_jax.sim.modelled import ModelledCompute
from swarm_jax.sim.oracle import (
    Broken,
    Reference,
    check_records,
    train_sequentially,
)
from swarm_jax.sim.swarm import Records

QUIET = Schedule((1, 2), 1, ())
JOIN = Fault(kind="join", peer="stage1-0", when="answered commit")


def expect(what, schedule=QUIET):
    with pytest.raises(Broken, match=what):
        run_schedule(schedule)


def after(monkeypatch, owner, name, also):
    """Calls ``also`` with the arguments after each call of a method."""
    method = getattr(owner, name)

    def both(*args, **kwargs):
        result = method(*args, **kwargs)
        also(*args)
        return result

    monkeypatch.setattr(owner, name, both)


def test_a_sum_that_survives_its_drop_or_commit(monkeypatch):
    def keep_the_sum(compute):
        compute._sum = getattr(compute, "_sum", np.zeros((1, 3)))
        compute._reduced = None

    monkeypatch.setattr(ModelledCompute, "_clear", keep_the_sum)
    expect("other parameters")


def test_a_microbatch_that_enters_the_sum_twice(monkeypatch):
    add = ModelledCompute._add

    def twice(compute, gradient, *rest):
        return add(compute, gradient * 2, *rest)

    monkeypatch.setattr(ModelledCompute, "_add", twice)
    expect("other parameters")


def test_a_wrong_norm(monkeypatch):
    apply = ModelledCompute.apply

    async def half(compute, norm):
        await apply(compute, norm / 2)

    monkeypatch.setattr(ModelledCompute, "apply", half)
    expect("other parameters")


def test_something_left_in_a_gradient_sum(monkeypatch):
    after(
        monkeypatch,
        StageServer,
        "_finish_if_last",
        lambda server: setattr(server._compute, "_sum", np.ones((1, 3))),
    )
    expect("gradient sum at the end|other parameters", Schedule((1,), 1, ()))


def test_a_step_closed_with_a_microbatch_missing(monkeypatch):
    """The ledger of one peer lacks an index, whatever the leader was told."""
    monkeypatch.setattr(
        "swarm_jax.roles.stage_control.StageState.ledger_digest",
        lambda state: state._claimed,
        raising=False,
    )
    refuse = StageControl._refuse_sum

    def forgetful(control, request):
        control._state._claimed = request.group[control._peer_id]
        refused = refuse(control, request)
        control._state.ledger._losses.popitem()
        return refused

    monkeypatch.setattr(StageControl, "_refuse_sum", forgetful)
    for peers in ((1,), (2,)):
        expect("took step 0 with", Schedule(peers, 1, ()))


def test_a_step_that_a_stage_never_took(monkeypatch):
    monkeypatch.setattr("swarm_jax.sim.oracle.Closes.hear", lambda closes, event: None)
    expect("never took step 0")


def test_steps_without_a_record(monkeypatch):
    monkeypatch.setattr(Records, "write", lambda self, **record: None)
    expect("no record of steps")


REFERENCE = Reference(states=[], losses=[1.0, 2.0], norms=[3.0, 4.0])


def record_of(step, **changed):
    return {
        "step": step,
        "train_loss": float(step),
        "gradient_norm": step + 2.0,
        "microbatches_expected": 8,
        "microbatches_counted_once": 8,
        "microbatches_lost": 0,
        "microbatches_counted_twice": 0,
    } | changed


def test_right_records_are_right_and_one_may_die_with_a_trainer():
    check_records([record_of(1), record_of(2)], REFERENCE, terms=1)
    check_records([record_of(2)], REFERENCE, terms=2)


@pytest.mark.parametrize(
    ("records", "what"),
    [
        ([record_of(2)], "no record of steps"),
        ([record_of(1), record_of(1), record_of(2)], "twice"),
        ([record_of(1), record_of(2, train_loss=2.5)], "recorded as"),
        ([record_of(1), record_of(2, gradient_norm=4.5)], "recorded as"),
        ([record_of(1), record_of(2, microbatches_counted_once=7)], "recorded as"),
    ],
)
def test_wrong_records(records, what):
    with pytest.raises(Broken, match=what):
        check_records(records, REFERENCE, terms=1)


def test_a_peer_left_joining(monkeypatch):
    async def for_ever(joining):
        await asyncio.Event().wait()

    monkeypatch.setattr(Joining, "_join", for_ever)
    expect("stage1-2 is JOINING", Schedule((1, 2), 1, (JOIN,)))


def test_a_peer_left_behind(monkeypatch):
    """It stands still for steps, and then fetches no state, told to or not."""
    hang = Fault(kind="hang", peer="stage1-0", when="answered prepare", for_s=15.0)

    async def refuse(control, request):
        return await control.collect(request)

    monkeypatch.setattr(StageControl, "resync", refuse)
    monkeypatch.setattr(StageServer, "_join_if_behind", lambda server: None)
    expect("stage1-0 is ONLINE at step", Schedule((1, 2), 1, (hang,)))


def test_a_peer_left_draining(monkeypatch):
    async def drain(server, timeout_s):
        server._control.enter("DRAINING")
        return True

    monkeypatch.setattr(StageServer, "drain", drain)
    monkeypatch.setattr(
        "swarm_jax.sim.swarm.SimulatedSwarm.kill_now",
        lambda swarm, peer: asyncio.ensure_future(asyncio.sleep(0)),
    )
    fault = Fault(kind="drain", peer="stage1-0", when="device_done backward", nth=3)
    expect("stage1-0 is OFFLINE", Schedule((1, 2), 1, (fault,)))


def test_a_microbatch_that_is_held_for_ever(monkeypatch):
    forget = Relaying._forget

    def all_but_one(relaying, key, work):
        if key[1] != (0, 0):
            forget(relaying, key, work)

    monkeypatch.setattr(Relaying, "_forget", all_but_one)
    expect("1 microbatches")


def test_a_handler_that_never_ends(monkeypatch):
    manifest = Snapshots.manifest

    async def hang(snapshots, request):
        await manifest(snapshots, request)
        await asyncio.Event().wait()

    monkeypatch.setattr(Snapshots, "manifest", hang)
    expect("stage1-2 is JOINING|calls", Schedule((1, 2), 1, (JOIN,)))


def test_a_handler_that_crashes_though_retries_hide_it(monkeypatch):
    crashed = []
    drop = StageControl.collect

    async def once(control, request):
        if not crashed:
            crashed.append(True)
            raise KeyError("a bug")
        return await drop(control, request)

    monkeypatch.setattr(StageControl, "collect", once)
    expect("collect on stage.*a bug")


def test_a_callback_that_crashes(monkeypatch):
    after(monkeypatch, StageState, "prepare", lambda state, gradients: _call_soon())
    expect("a bug in a callback")


def _call_soon():
    asyncio.get_running_loop().call_soon(_raise)


def _raise():
    raise KeyError("a bug in a callback")


def test_a_server_that_ends(monkeypatch):
    async def announce(server):
        raise RuntimeError("cannot announce")

    monkeypatch.setattr(StageServer, "_announce", announce)
    expect("stage0-0 ended.*")


def test_a_drain_that_crashes(monkeypatch):
    async def crash(server, timeout_s):
        raise RuntimeError("drain crashed")

    monkeypatch.setattr(StageServer, "drain", crash)
    drain = Fault(kind="drain", peer="stage0-0", when="answered relay", nth=3)
    expect("drain crashed", Schedule((2, 2), 1, (drain,)))


def test_snapshots_that_outlive_their_server(monkeypatch):
    monkeypatch.setattr(Snapshots, "close", lambda snapshots: None)
    monkeypatch.setattr("swarm_jax.roles.snapshots.KEPT_S", 1e6)
    expect("'snapshots': 1", Schedule((1, 2), 1, (JOIN,)))


def test_a_task_that_outlives_everybody(monkeypatch):
    after(
        monkeypatch,
        StageServer,
        "_counted",
        lambda *_: asyncio.ensure_future(asyncio.sleep(1e6)),
    )
    expect("sleep")


def test_a_run_that_does_not_end(monkeypatch):
    async def wait(leader, action, reports):
        await asyncio.sleep(1.0)

    monkeypatch.setattr(Leader, "_feed", wait)
    expect("no trainer has finished")


def test_the_reference_is_another_program_than_the_swarm():
    one, two = train_sequentially(2, 1), train_sequentially(2, 2)
    assert one.losses == two.losses[:1] and one.states != two.states
    assert len(two.norms) == 2
