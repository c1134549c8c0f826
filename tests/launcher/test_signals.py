import asyncio
import signal
import sys
import time

import pytest

from swarm_jax.launcher import imports, signals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "end"),
    [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
)
class TestAnEnd:
    @pytest.fixture(autouse=True)
    def heard(self):
        signals.hear_interrupts()
        signals.exit_on_signals()

    def test_is_raised_again_when_a_callback_swallowed_it(self, number, end):
        class Swallows:
            def __del__(self):
                signal.raise_signal(number)

        swallows = [Swallows()]
        with pytest.raises(end):
            swallows.clear()
            time.sleep(10)

    def test_waits_for_the_end_of_imports(self, number, end):
        done = []
        with pytest.raises(end), imports.many():
            signal.raise_signal(number)
            done.append("the import")
        assert done

    def test_comes_at_once_after_them(self, number, end):
        with imports.many():
            pass
        with pytest.raises(end):
            signal.raise_signal(number)


def test_what_work_needs_to_close_lives_until_it_has_ended():
    """Else its end waited for an answer that nobody was left to give."""
    signals.exit_on_signals()
    leave = signal.getsignal(signal.SIGTERM)
    closed = []

    async def work():
        asked, answered = asyncio.Event(), asyncio.Event()

        async def help_to_close():
            await asked.wait()
            answered.set()

        helper = asyncio.create_task(help_to_close())
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, signal.raise_signal, signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        finally:
            asked.set()
            async with asyncio.timeout(10):
                await answered.wait()
            closed.append(helper)

    with pytest.raises(SystemExit) as end:
        signals.run(work())
    assert end.value.code == 128 + signal.SIGTERM
    assert closed
    assert signal.getsignal(signal.SIGTERM) is leave


def test_a_signal_is_not_lost_when_work_ends_well_all_the_same():
    signals.exit_on_signals()

    async def work():
        signal.raise_signal(signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "result"

    with pytest.raises(SystemExit):
        signals.run(work())


def test_work_that_no_signal_ends_gives_what_it_gives():
    assert signals.run(asyncio.sleep(0, "result")) == "result"


def test_what_else_is_lost_is_reported_as_before(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    signals.hear_interrupts()

    class Fails:
        def __del__(self):
            raise ValueError("by a destructor")

    Fails()
    assert [str(lost.exc_value) for lost in reported] == ["by a destructor"]


def test_imports_leave_a_signal_that_kills_alone():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with imports.many():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
