"""The process gets its signal once, at the message that the option names."""

import asyncio
import os
import signal

import pytest

from scripts.signal_at import Trigger, watched
from swarm_jax.net.protocols import Message


@pytest.fixture
def sent(monkeypatch):
    signals = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append(number))
    return signals


class Calls:
    """Answers what it is told; as a service, too."""

    peer_id = "peer"

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.service = None

    def is_same_host(self, peer):
        return True

    async def serve(self, service):
        self.service = service

    async def call(self, peer, message, *, timeout_s):
        return Message({"status": self.statuses.pop(0)})

    async def close(self):
        pass

    def admit(self, sender, header, specs):
        return None

    async def handle(self, sender, message):
        return await self.call(sender, message, timeout_s=1)


def relay(step):
    return Message({"op": "relay", "id": [step, 3]})


def test_it_counts_in_one_step_only_and_fires_once(sent):
    trigger = Trigger("KILL:counted:3:2")
    for step in (2, 3, 2, 2):
        trigger.happened("counted", step)
    assert sent == []
    for _ in range(3):
        trigger.happened("counted", 3)
    assert sent == [signal.SIGKILL]


def test_from_a_step_on(sent):
    trigger = Trigger("KILL:counted:3+:2")
    for step in (2, 2, 3, None):
        trigger.happened("counted", step)
    assert sent == []
    trigger.happened("counted", 5)
    assert sent == [signal.SIGKILL]


def test_a_caller_counts_good_answers(sent):
    calls = watched(Calls("ok", "busy", "ok", "ok"), Trigger("STOP:got-relay:1:2"))
    fired = []

    async def ask():
        for step in (1, 1, 0, 1):
            await calls.call("other", relay(step), timeout_s=1)
            fired.append(len(sent))

    asyncio.run(ask())
    assert fired == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("event", "fired"), [("asked-chunk", [1, 1, 1]), ("gave-chunk", [0, 0, 1])]
)
def test_a_callee_counts_questions_or_good_answers(sent, event, fired):
    inner = Calls("busy", "ok")
    calls = watched(inner, Trigger(f"TERM:{event}:*:1"))
    chunk = Message({"op": "chunk", "index": 0})
    seen = []

    async def serve():
        await calls.serve(inner)
        for _ in range(2):
            inner.service.admit("other", chunk.header, [])
            seen.append(len(sent))
            await inner.service.handle("other", chunk)
        seen.append(len(sent))

    asyncio.run(serve())
    assert seen == fired


def test_without_a_trigger_nothing_is_watched():
    calls = Calls()
    assert watched(calls, None) is calls
