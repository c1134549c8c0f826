"""What happens before a device is ready, in order."""

import asyncio
import threading
from functools import partial

import jax
import numpy as np
import pytest

from swarm_jax.errors import Abandoned
from swarm_jax.stage import threaded
from swarm_jax.stage.ahead import Ahead
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.memory import plan_residuals
from swarm_jax.stage.threaded import ThreadedCompute


@pytest.fixture
def stage(make_stages):
    return make_stages((1, 3))[0]


@pytest.fixture
def preparing(stage):
    """A device that compiles until ``go`` is set: (compute, go, events)."""
    go, events = threading.Event(), []

    def prepare(check):
        events.append("compiling")
        assert go.wait(30.0)
        events.append("compiled")

    def init():
        events.append("parameters")
        return stage.programs.copy(stage.params)

    compute = ThreadedCompute(stage.programs, init, prepare=prepare)
    yield compute, go, events
    go.set()
    compute.close()


def test_shapes_are_known_before_and_work_waits(preparing, stage, make_microbatch):
    compute, go, events = preparing
    other = InlineCompute(stage.programs, partial(stage.programs.copy, stage.params))
    for name in ("input_specs", "gradient_specs", "sum_specs", "state_specs"):
        assert getattr(compute, name) == getattr(other, name)
    assert compute.state_structure == other.state_structure
    inputs_BL, _ = make_microbatch(0)

    async def scenario():
        await compute.clear()
        state = [array + 1 for array in await other.state()]
        waiting = [
            asyncio.ensure_future(compute.load_state(state)),
            asyncio.ensure_future(compute.ready()),
            asyncio.ensure_future(compute.forward((inputs_BL,), keep=True, order=0)),
        ]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        assert events == ["compiling"]
        go.set()
        await asyncio.gather(*waiting)
        assert events == ["compiling", "compiled", "parameters"]
        for ours, theirs in zip(await compute.state(), state, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    asyncio.run(scenario())


def test_nothing_is_uploaded_while_passes_are_run_for_the_first_time(monkeypatch):
    """cuDNN fails for good if another thread moves an array meanwhile."""
    go, events = threading.Event(), []
    put = jax.device_put
    monkeypatch.setattr(
        threaded.jax,
        "device_put",
        lambda arrays: events.append("upload") or put(arrays),
    )
    threads = threaded._Threads(2, None)

    def work():
        assert go.wait(30.0)
        events.append("passes run")

    threads.begin(work)
    waits = [threads.upload(np.zeros(3)) for _ in range(2)]
    assert events == []
    go.set()
    for wait in waits:
        assert wait().shape == (3,)
    assert events == ["passes run", "upload", "upload"]
    threads.close()


def test_what_is_closed_compiles_no_further_program(stage, monkeypatch):
    begun, go, compiled = threading.Event(), threading.Event(), []
    check_and_compile = Ahead._compiled

    def compile_one(self, program, *arguments):
        begun.set()
        assert go.wait(30.0)
        taken = check_and_compile(self, program, *arguments)
        compiled.append(program)
        return taken

    monkeypatch.setattr(Ahead, "_compiled", compile_one)

    def prepare(check):
        plan_residuals(
            stage.programs, lambda: stage.params, residual_bytes=0, most=1, check=check
        )

    compute = ThreadedCompute(stage.programs, lambda: stage.params, prepare=prepare)
    assert begun.wait(30.0)
    closing = threading.Thread(target=compute.close)
    closing.start()
    while not compute._threads._is_closed:
        pass
    go.set()
    closing.join()
    assert compiled == []
    with pytest.raises(Abandoned):
        asyncio.run(compute.ready())


def test_who_cannot_begin_says_why(stage):
    def prepare(check):
        raise MemoryError("no room")

    compute = ThreadedCompute(stage.programs, lambda: stage.params, prepare=prepare)
    with pytest.raises(MemoryError, match="no room"):
        asyncio.run(compute.ready())
    compute.close()
