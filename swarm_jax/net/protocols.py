"""What roles need of a network. Adapters: ``local`` (in process) and ``hivemind_*``.

One contract test suite (``tests/net/``) runs over both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

ArraySpec = tuple[str, tuple[int, ...]]
"""dtype name and shape, for example ``("float32", (4, 128, 256))``."""


def spec_of(array: np.ndarray) -> ArraySpec:
    return array.dtype.name, tuple(array.shape)


@dataclass(frozen=True, slots=True)
class Message:
    """A header of msgpack types and raw arrays.

    Attributes:
        header: str keys; values of None, bool, int, float, str, bytes, list, dict.
        arrays: C-contiguous or 0-d arrays; read-only on the receiver's side.
    """

    header: Mapping[str, Any]
    arrays: Sequence[np.ndarray] = field(default=())


class Service(Protocol):
    """What a peer does with the calls of others."""

    def admit(
        self, sender: str, header: Mapping[str, Any], specs: Sequence[ArraySpec]
    ) -> Message | None:
        """Decides at the door, before the body is received.

        Returns:
            None to let the call in, or the refusal to answer at once.

        Raises:
            BadMessage: The sender is dropped and all its calls are cancelled.
        """
        ...

    async def handle(self, sender: str, message: Message) -> Message:
        """Answers one call. Cancelled when the caller cancels, times out or is lost.

        Raises:
            BadMessage: The sender is dropped and all its calls are cancelled.
        """
        ...


class PeerCalls(Protocol):
    """Calls between peers over long-lived streams.

    Heartbeats flow back to the caller from the moment that a call arrives until it is
    answered, whatever the handler is waiting for.
    """

    peer_id: str

    async def serve(self, service: Service) -> None:
        """Starts to answer calls. Once per peer."""
        ...

    async def call(self, peer: str, message: Message, *, timeout_s: float) -> Message:
        """Sends a request and waits for its answer.

        Raises:
            PeerLost: The peer cannot be reached, or its connection broke.
            PeerStalled: No frame came for three heartbeats.
            PeerTimeout: ``timeout_s`` ran out.
            BadMessage: The answer is malformed; the connection is dropped.
            RemoteError: The peer's handler raised.
        """
        ...

    def is_same_host(self, peer: str) -> bool:
        """Whether what a peer was last sent went past the network, on this host."""
        ...

    async def close(self) -> None:
        """Cancels all calls in both directions and drops all connections."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """One directory entry. ``expires_at_s`` is on the directory's own clock."""

    value: Any
    expires_at_s: float


class Directory(Protocol):
    """Who serves what, with expiry. Reads may lag behind writes by seconds."""

    async def store(
        self, key: str, subkey: str, value: Any, *, expires_in_s: float
    ) -> bool:
        """Publishes a value of msgpack types; False when it was not accepted."""
        ...

    async def get(self, key: str) -> dict[str, Record]:
        """Live entries of a key by subkey; empty when there are none."""
        ...

    def now_s(self) -> float:
        """The clock of ``expires_at_s``."""
        ...


class AllReduce(Protocol):
    """Mean of one list of arrays over a group that the caller names."""

    async def average(
        self,
        group_id: str,
        peers: Sequence[str],
        arrays: Sequence[np.ndarray],
        *,
        timeout_s: float,
    ) -> list[np.ndarray]:
        """Every member calls this with the same group id, peers and shapes.

        Inputs are not modified. The result has bit for bit the same bytes on all
        members that get one.

        Raises:
            AllReduceVoid: Some part of some member did not arrive in time. Other
                members may nevertheless have got a complete result.
        """
        ...
