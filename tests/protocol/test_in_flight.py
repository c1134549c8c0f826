"""Work in flight: repeated, given up, overtaken (design, sections 4 and 5)."""

import asyncio
import functools

import pytest

from swarm_jax.core.stage_state import StageState
from swarm_jax.errors import PeerError
from swarm_jax.net.local import LocalNetwork, OneMessage
from swarm_jax.net.local_calls import LocalCalls
from swarm_jax.net.protocols import Message
from swarm_jax.roles.relaying import Relaying, _Work
from swarm_jax.sim.clock import run_virtual


@pytest.mark.parametrize(
    ("off", "verdict", "passed_on"),
    [
        ("", "right", 25),
        ("newest", "right", 26),
        ("ledger", "right", 25),
        ("newest, ledger", "crashed", 26),
    ],
)
def test_the_newest_request_for_a_microbatch_wins(
    play, monkeypatch, off, verdict, passed_on
):
    """The second request to stage0-0 comes twice, 5 ms apart.

    Off: both are worked on and passed on, and what is in the ledger is not counted
    again. Without that guard either, the gradient is in the sum twice, which the ledger
    does not survive.
    """
    if "newest" in off:
        monkeypatch.setattr(_Work, "supersede", lambda work: None)
    if "ledger" in off:
        monkeypatch.setattr(StageState, "has_counted", lambda state, id_: False)

    async def a_request_comes_twice(run):
        twice = OneMessage(duplicate=True, delay_s=0.005)
        link = "trainer-a", "stage0-0"
        harm = functools.partial(run.wires.harm_next, *link, twice)
        run.at("request_sent", "relay", "trainer-a", harm, nth=2)

    outcome = play([1, 1], a_request_comes_twice, microbatches_in_flight=1)
    assert outcome.verdict.startswith(verdict)
    assert outcome.count("request_sent", "relay", "stage0-0") == passed_on


def test_a_time_out_never_leaves_a_hidden_second_count(rule, play):
    """stage1-0 is adding a gradient when its sender's time runs out.

    Off: it answers collect without that microbatch, which stage1-1 then counts; and
    brings it into the all-reduce, for its ledger does not have it yet (so the exact
    prepare, L, does not help).
    """

    async def at_once(relaying):
        pass

    rule.off(Relaying, "settled", at_once)

    async def one_takes_long(run):
        run.slow_s["stage1-0", "backward"] = 21.0

    outcome = play([1, 2], one_takes_long)
    assert outcome.verdict == rule.gives("right", off="wrong parameters")


def test_work_that_lost_its_sender_is_cancelled_down_the_chain(rule, play):
    """The trainer dies while stage 2 is busy with the first of its microbatches.

    Off: all stages keep on working at what nobody waits for, and hold its memory.
    """
    rule.off(LocalCalls, "_hang_up", lambda calls, call: None)
    held = []

    async def the_trainer_dies(run):
        run.slow_s["stage2-0", "backward"] = 1.0
        await run.until(lambda: run.swarm.computes["stage2-0"].queued == 4)
        run.kill_trainer()
        await asyncio.sleep(0.01)
        held.extend(len(server._relaying) for server in run.swarm.servers.values())
        run.start_trainer("trainer-b")

    outcome = play([1, 1, 1], the_trainer_dies)
    assert outcome.verdict == "right"
    assert held == rule.gives([0, 0, 0], off=[8, 7, 6])


def test_clean_up_is_in_done_callbacks(rule):
    """A connection breaks after a request has come, before its handler's first step.

    Off: the same clean-up in the handler's ``finally`` never runs, since asyncio does
    not even start a task that is cancelled before; the call is in flight for ever.
    """
    finished = LocalCalls._finished
    rule.off(LocalCalls, "_finished", lambda calls, task: None)

    class Service:
        def admit(self, sender, header, specs):
            return None

        async def handle(self, sender, message):
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                if not rule.is_on:
                    finished(callee, asyncio.current_task())

    async def main():
        nonlocal callee
        network = LocalNetwork()
        caller, callee = network.calls("a"), network.calls("b")
        await callee.serve(Service())
        break_off = functools.partial(callee.disconnect, "a", "connection reset")

        def soon(event):
            if event.kind == "request_arrived":
                asyncio.get_running_loop().call_soon(break_off)

        network.wires.listeners.append(soon)
        with pytest.raises(PeerError):
            await caller.call("b", Message({}), timeout_s=9.0)
        await asyncio.sleep(1.0)
        return callee.handling

    callee = None
    assert run_virtual(main()) == rule.gives(0, off=1)
