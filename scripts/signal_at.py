"""To test recovery: a process sends itself a signal at an exact point of the protocol.

``--signal_at SIGNAL:EVENT:STEP:COUNT``: when EVENT has happened COUNT times in STEP
(``3+``: from step 3 on; ``*``: in any, or in none). Events are ``counted`` (a
microbatch is in this peer's gradient sum) and, of the messages of ``roles.messages``,
by their ``op``:

    asked-OP   another peer asks this one
    gave-OP    this peer has answered "ok"; the answer has not left yet
    got-OP     another peer has answered this one "ok"

So ``KILL:gave-prepare:3:1`` dies between prepare and commit of step 3, and
``STOP:got-relay:2:4`` freezes a trainer that got 4 microbatches of step 2 back.
"""

import argparse
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from swarm_jax.net.protocols import ArraySpec, Message, PeerCalls, Service

logger = logging.getLogger(__name__)

ANY_STEP = "*"
AND_LATER = "+"


class Trigger:
    """Counts what happens, and sends the signal once.

    Args:
        text: ``SIGNAL:EVENT:STEP:COUNT``.
    """

    def __init__(self, text: str):
        name, self._event, step, count = text.split(":")
        self._signal = signal.Signals[f"SIG{name}"]
        self._any_step = step == ANY_STEP
        self._and_later = step.endswith(AND_LATER)
        self._step = 0 if self._any_step else int(step.removesuffix(AND_LATER))
        self._left = int(count)

    def happened(self, event: str, step: int | None) -> None:
        if event != self._event or not self._fits(step):
            return
        self._left -= 1
        if self._left == 0:
            logger.warning("--signal_at: %s, as asked for", self._signal.name)
            os.kill(os.getpid(), self._signal)

    def _fits(self, step: int | None) -> bool:
        if step is None or self._any_step:
            return self._any_step
        return step == self._step or (self._and_later and step > self._step)


class WatchedCalls:
    """``PeerCalls`` that tell a trigger of every message."""

    def __init__(self, calls: PeerCalls, trigger: Trigger):
        self._calls = calls
        self._trigger = trigger
        self.peer_id = calls.peer_id
        self.is_same_host = calls.is_same_host
        self.close = calls.close

    async def serve(self, service: Service) -> None:
        await self._calls.serve(_WatchedService(service, self._trigger))

    async def call(self, peer: str, message: Message, *, timeout_s: float) -> Message:
        reply = await self._calls.call(peer, message, timeout_s=timeout_s)
        _tell(self._trigger, "got", message, reply)
        return reply


class _WatchedService:
    def __init__(self, service: Service, trigger: Trigger):
        self._service = service
        self._trigger = trigger

    def admit(
        self, sender: str, header: Mapping[str, Any], specs: Sequence[ArraySpec]
    ) -> Message | None:
        self._trigger.happened(f"asked-{header.get('op')}", _step_of(header))
        return self._service.admit(sender, header, specs)

    async def handle(self, sender: str, message: Message) -> Message:
        reply = await self._service.handle(sender, message)
        _tell(self._trigger, "gave", message, reply)
        return reply


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--signal_at``."""
    parser.add_argument(
        "--signal_at",
        type=Trigger,
        metavar="SIGNAL:EVENT:STEP:COUNT",
        help="to test recovery: send this process KILL, STOP or TERM when EVENT has "
        "happened COUNT times in STEP (from 0); scripts/signal_at.py lists events",
    )


def watched(calls: PeerCalls, trigger: Trigger | None) -> PeerCalls:
    """``calls`` themselves if there is nothing to watch for."""
    return calls if trigger is None else WatchedCalls(calls, trigger)


def _tell(trigger: Trigger, verb: str, request: Message, reply: Message) -> None:
    if reply.header.get("status") == "ok":
        step = _step_of(request.header)
        trigger.happened(f"{verb}-{request.header['op']}", step)


def _step_of(header: Mapping[str, Any]) -> int | None:
    """Relays name their microbatch, (step, index)."""
    return header.get("step", header.get("id", [None])[0])
