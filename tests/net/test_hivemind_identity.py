"""A second peer with the identity of a running one is told so, however busy it is."""

import asyncio
from types import SimpleNamespace

import pytest
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure

from swarm_jax.net import hivemind_identity
from swarm_jax.net.hivemind_identity import answers

PEER = PeerID.from_base58("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
KNOWS_NOBODY = ControlFailure("Connect failed. msg=failed to find any peer in table")
NOT_FOUND = ControlFailure("Connect failed. msg=routing: not found")


class Client:
    """What a daemon answers to one ``connect`` after the other; the last for ever."""

    def __init__(self, *errors: Exception | None):
        self.errors = list(errors)

    async def connect(self, peer, maddrs):
        error = self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("errors", "answer"),
    [
        ([None], True),
        ([NOT_FOUND], False),
        ([KNOWS_NOBODY, KNOWS_NOBODY, None], True),
        ([KNOWS_NOBODY, NOT_FOUND], False),
    ],
)
def test_a_daemon_that_knows_nobody_yet_is_asked_again(errors, answer):
    probe = SimpleNamespace(_client=Client(*errors))
    assert asyncio.run(answers(probe, PEER)) is answer


def test_a_daemon_that_never_knows_anybody_holds_up_the_start_for_a_while(monkeypatch):
    monkeypatch.setattr(hivemind_identity, "PROBE_TIMEOUT_S", 0.2)
    probe = SimpleNamespace(_client=Client(KNOWS_NOBODY))
    assert asyncio.run(answers(probe, PEER)) is False
