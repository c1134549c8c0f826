"""The queue on a fake device whose operations finish when the test says so."""

import asyncio
from concurrent.futures import Future

import pytest

from swarm_jax.errors import Abandoned
from swarm_jax.stage.queue import DeviceQueue, Finished, Kind, Operation


class FakeDevice:
    def __init__(self):
        self.started = []
        self.now_s = 0.0
        self._done = {}

    def start(self, operation, done):
        self.started.append(operation.name)
        self._done[operation.name] = done, self.now_s

    def finish(self, name, result=None, error=None, after_s=1.0):
        """Ends an operation ``after_s`` later."""
        self.now_s += after_s
        outcome = Future()
        if error:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)
        done, started_s = self._done.pop(name)
        done(Finished(outcome, started_s, self.now_s))


class Settled(list):
    """An operation's ``start`` and ``settle``."""

    def __init__(self, allowed=True):
        super().__init__()
        self.allowed = allowed

    def operation(self, name, kind=Kind.BACKWARD, order=0):
        return Operation(
            name,
            kind,
            launch=None,
            order=order,
            start=lambda: self.allowed,
            settle=self.append,
        )


def plain(name, kind=Kind.FORWARD, order=0):
    return Operation(name, kind, launch=None, order=order)


def run_test(scenario, depth=1):
    """Runs ``scenario(queue, device, submit)`` in an event loop."""

    async def main():
        device = FakeDevice()
        queue = DeviceQueue(device, depth)

        async def submit(operation):
            """Returns the task once the queue has the operation."""
            task = asyncio.ensure_future(queue.run(operation))
            await asyncio.sleep(0)
            return task

        await scenario(queue, device, submit)

    asyncio.run(main())


async def turn():
    """Lets callbacks of this turn, and what they schedule, run."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_control_before_backward_before_forward_and_old_before_young():
    async def scenario(queue, device, submit):
        await submit(plain("running"))
        await submit(plain("young forward", order=9))
        await submit(plain("old forward", order=1))
        await submit(plain("young backward", Kind.BACKWARD, order=8))
        await submit(plain("control 1", Kind.CONTROL))
        await submit(plain("old backward", Kind.BACKWARD, order=2))
        await submit(plain("control 2", Kind.CONTROL))
        assert queue.queued == 6
        for name in expected:
            device.finish(name)
        assert device.started == expected
        assert queue.queued == 0

    expected = ["running", "control 1", "control 2", "old backward", "young backward"]
    expected += ["old forward", "young forward"]
    run_test(scenario)


def test_no_more_than_depth_operations_are_with_the_device():
    async def scenario(queue, device, submit):
        for name in "abc":
            await submit(plain(name))
        assert device.started == ["a", "b"]
        device.finish("a")
        assert device.started == ["a", "b", "c"]

    run_test(scenario, depth=2)


def test_result_and_seconds_on_the_device_without_its_queue():
    async def scenario(queue, device, submit):
        first = await submit(plain("first"))
        second = await submit(plain("second"))
        device.finish("first", result="one", after_s=3.0)
        device.finish("second", result="two", after_s=4.0)
        assert await first == ("one", 3.0)
        assert await second == ("two", 4.0)

    run_test(scenario, depth=2)


def test_cancelling_removes_what_waits():
    async def scenario(queue, device, submit):
        await submit(plain("running"))
        waiting = await submit(plain("waiting"))
        waiting.cancel()
        await turn()
        assert queue.queued == 0
        device.finish("running")
        assert device.started == ["running"]

    run_test(scenario)


def test_cancelled_in_the_very_turn_in_which_the_device_gets_free():
    async def scenario(queue, device, submit):
        await submit(plain("running"))
        settled = Settled()
        waiting = await submit(settled.operation("waiting"))
        waiting.cancel()
        device.finish("running")
        await turn()
        assert device.started == ["running"] and not settled

    run_test(scenario)


def test_a_task_cancelled_before_its_first_step_leaves_nothing():
    async def scenario(queue, device, submit):
        task = asyncio.ensure_future(queue.run(plain("never")))
        task.cancel()
        await turn()
        assert queue.queued == 0 and device.started == []

    run_test(scenario)


def test_what_has_started_is_settled_also_when_nobody_waits():
    async def scenario(queue, device, submit):
        settled = Settled()
        task = await submit(settled.operation("backward"))
        task.cancel()
        await turn()
        assert task.cancelled() and settled == []
        device.finish("backward", result="gradient")
        assert settled == ["gradient"]

    run_test(scenario)


def test_refused_at_the_start_is_abandoned_and_the_next_goes_on():
    async def scenario(queue, device, submit):
        await submit(plain("running"))
        settled = Settled(allowed=False)
        refused = await submit(settled.operation("refused"))
        await submit(plain("next"))
        device.finish("running")
        with pytest.raises(Abandoned):
            await refused
        assert device.started == ["running", "next"] and settled == []

    run_test(scenario)


def test_a_failed_operation_raises_is_settled_and_the_next_goes_on():
    async def scenario(queue, device, submit):
        settled = Settled()
        failed = await submit(settled.operation("failed"))
        following = await submit(plain("next"))
        device.finish("failed", error=MemoryError("out of memory"))
        with pytest.raises(MemoryError):
            await failed
        assert settled == [None]
        device.finish("next", result=1)
        assert (await following)[0] == 1

    run_test(scenario)


def test_results_come_in_the_order_of_the_start():
    """So a control operation never returns before a gradient it saw is settled."""

    async def scenario(queue, device, submit):
        settled = Settled()
        await submit(settled.operation("backward"))
        control = await submit(plain("control", Kind.CONTROL))
        device.finish("control", result="sum")
        await turn()
        assert not control.done() and not settled
        device.finish("backward", result="gradient")
        assert settled == ["gradient"]
        assert (await control)[0] == "sum"

    run_test(scenario, depth=2)


def test_closing_cancels_what_waits():
    async def scenario(queue, device, submit):
        running, waiting = await submit(plain("a")), await submit(plain("b"))
        queue.cancel_waiting()
        device.finish("a", result=1)
        assert (await running)[0] == 1
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert device.started == ["a"]

    run_test(scenario)
