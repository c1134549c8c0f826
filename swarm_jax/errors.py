"""Exceptions, sorted by whose fault it is.

``ConfigError`` is what a user typed, ``PeerError`` the other side of a connection,
``Diverged`` the model. Our own invariants are ``assert`` statements.
"""


class SwarmError(Exception):
    """Base class of all errors raised by swarm_jax."""


class ConfigError(SwarmError, ValueError):
    """Something a user typed cannot work. The message says what to type instead."""


class StartupError(SwarmError):
    """A process could not start: a port in use, a bootstrap that does not answer."""


class CheckpointError(SwarmError):
    """A checkpoint could not be written or restored. The message says what to do."""


class PeerError(SwarmError):
    """The other side failed. ``peer`` names it.

    Args:
        peer: Peer id of the other side.
        reason: What happened, in a few words.
    """

    def __init__(self, peer: str, reason: str):
        super().__init__(f"peer {peer}: {reason}")
        self.peer = peer
        self.reason = reason


class PeerLost(PeerError):
    """The connection is gone or was refused: the peer is dead or unreachable."""


class PeerStalled(PeerError):
    """The connection is open, but no frame came for several heartbeats."""


class PeerTimeout(PeerError):
    """The peer was alive to the end of the call's time budget, but did not answer."""


class BadMessage(PeerError):
    """The peer sent something malformed: it is dropped, the receiver goes on."""


class RemoteError(PeerError):
    """The peer's handler failed with an exception of its own."""


class AllReduceVoid(SwarmError):
    """A round of all-reduce is void: nobody may apply it.

    Args:
        missing: Peer ids whose contribution did not arrive in full.
        reason: What happened, in a few words.
    """

    def __init__(self, missing: tuple[str, ...], reason: str):
        super().__init__(f"all-reduce is void, missing {list(missing)}: {reason}")
        self.missing = missing
        self.reason = reason


class Diverged(SwarmError):
    """The model gave non-finite values on independent peers for the same microbatch."""


class Abandoned(SwarmError):
    """``Count.start`` said no: the device was not started, nothing was done."""
