"""One round of hivemind's butterfly all-reduce, made exact.

``AllReduceRunner`` cuts the vector into one share per peer, sends every other peer its
share's parts, averages the parts of the own share and puts the result together. Stock,
it is made to go on when peers fail: it returns success with a third of the vector
missing, its replicas differ in the last bits, and streams of its own can lose their
tail. So what is overridden, and why:

* averages travel instead of differences: all members get the same bytes, the one that
  made them too;
* parts are added up in the order of the peers, not of arrival: the same inputs give the
  same bytes in every run;
* a member that fails makes the round void, instead of being left out of it;
* parts travel as calls of our wire, which notices dead and hung peers, and checks
  lengths and shapes before it stores anything.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import torch
from hivemind.averaging.allreduce import AllReduceRunner
from hivemind.p2p import P2P, PeerID

from swarm_jax.errors import AllReduceVoid, BadMessage, PeerError
from swarm_jax.net.parts import PartCodec

PART_VALUES = 128 * 1024
MIN_PARTS_IN_FLIGHT, MAX_PARTS_IN_FLIGHT = 8, 128
IN_FLIGHT_BYTES = 16 * 1024 * 1024
"""To one member: what 1 Gb/s hold in 0.13 s. To all together at most as much as eight
such; but of parts never fewer than the least, nor more than half of a stream's calls.
"""
SHARE_MULTIPLE = 16

Exchange = Callable[[str, int, np.ndarray], Awaitable[Sequence[np.ndarray]]]
"""Sends a part of a peer's share to it: (peer, index of the part, float32 [N]).
The answer is the encoded mean."""


def cut_shares(arrays: Sequence[np.ndarray], num_peers: int) -> list[np.ndarray]:
    """One float32 vector of equal length per peer, over copies of all ``arrays``.

    Zeros fill the end, so that every peer has a share however short the vector is: so
    each peer talks to each other one, and notices when it is dead. The multiple keeps
    hivemind's rounding of pivots from handing a part to the neighbour.
    """
    total = sum(array.size for array in arrays)
    length = -(-total // (num_peers * SHARE_MULTIPLE)) * SHARE_MULTIPLE
    vector = np.empty(length * num_peers, np.float32)
    np.concatenate([array.reshape(-1) for array in arrays], out=vector[:total])
    vector[total:] = 0
    return list(vector.reshape(num_peers, length))


def cut_like(vector: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Views of what was ``cut_shares``' vector, with the shapes of ``like``."""
    pieces = np.split(vector, np.cumsum([array.size for array in like]))
    return [
        piece.reshape(array.shape) for piece, array in zip(pieces, like, strict=False)
    ]


def parts_in_flight(codec: PartCodec, num_peers: int) -> int:
    """Parts that a peer has on their way to one other: enough to fill a long link."""
    part_bytes = sum(
        np.dtype(dtype).itemsize * math.prod(shape)
        for dtype, shape in codec.specs(PART_VALUES)
    )
    allowed = min(IN_FLIGHT_BYTES, 8 * IN_FLIGHT_BYTES // (num_peers - 1))
    parts = allowed // part_bytes
    return min(MAX_PARTS_IN_FLIGHT, max(MIN_PARTS_IN_FLIGHT, parts))


class ExactRunner(AllReduceRunner):
    """A round, from this peer's side.

    Args:
        p2p: For this peer's id; nothing is sent through it.
        group_id: Names the round in hivemind's log lines.
        peers: The members in the order of their shares, this peer among them.
        shares: From ``cut_shares``; not modified.
        exchange: How a part gets to its reducer, and its mean back.
        codec: How the mean travels, also to the reducer itself.

    Attributes:
        mean: All shares' means, one after the other, once the round is over: hivemind's
            own result is a copy of them.
        failure: Done with an ``AllReduceVoid`` as result once the round is void.
    """

    def __init__(
        self,
        *,
        p2p: P2P,
        group_id: str,
        peers: Sequence[str],
        shares: Sequence[np.ndarray],
        exchange: Exchange,
        codec: PartCodec,
    ):
        super().__init__(
            p2p=p2p,
            servicer_type=type(self),
            prefix=None,
            group_id=group_id.encode(),
            tensors=[torch.from_numpy(share) for share in shares],
            ordered_peer_ids=[PeerID.from_base58(peer) for peer in peers],
            peer_fractions=tuple(len(share) for share in shares),
            part_size_bytes=PART_VALUES * 4,
        )
        # The result is looked at through ``failure``.
        self._future.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )
        # Or it would complain in the log, when collected, that no part has come.
        self.tensor_part_reducer.finished.set()
        self.tensor_part_reducer = ExactReducer(
            [len(part) for part in self.parts_for_local_averaging], len(peers), codec
        )
        assert all(self.tensor_part_container.num_parts_by_peer)
        self.failure: asyncio.Future = asyncio.get_running_loop().create_future()
        self.mean = np.empty(sum(len(share) for share in shares), np.float32)
        self._peers = tuple(peers)
        self._owing = set(peers)
        self._exchange = exchange
        self._codec = codec

    async def aggregate(
        self, sender: str, number: int, part: np.ndarray
    ) -> list[np.ndarray]:
        """Adds a member's part to this peer's share; returns the mean, encoded.

        Raises:
            AllReduceVoid: The round is void.
            BadMessage: There is no such part, or it came before.
        """
        reducer = self.tensor_part_reducer
        try:
            mean = reducer.add(self._peers.index(sender), number, part)
        except ValueError as error:
            raise BadMessage(sender, f"all-reduce: {error}") from error
        # The mean is shared: who is cancelled here must not cancel it.
        return await asyncio.shield(mean)

    def lacking(self) -> tuple[str, ...]:
        """Whose contribution to this peer's share is due, or else who owes its mean."""
        senders = self.tensor_part_reducer.lacking()
        if senders:
            return tuple(self._peers[index] for index in senders)
        return tuple(peer for peer in self._peers if peer in self._owing)

    def fail(self, void: AllReduceVoid) -> None:
        """Makes the round void for this peer and all that wait for it."""
        if not self.failure.done():
            self.failure.set_result(void)
            self.tensor_part_reducer.fail(void)

    async def _handle_missing_senders(self) -> None:
        """Nobody is left out: the round as a whole has a deadline."""

    async def _communicate_with_peer(self, peer_id: PeerID) -> None:
        peer = peer_id.to_base58()
        index = self._peers.index(peer)
        container = self.tensor_part_container
        if peer_id == self.peer_id:
            parts, send = self.parts_for_local_averaging, self.aggregate
        else:
            parts, send = container.get_raw_input_parts(index), self._exchange
        slots = asyncio.Semaphore(parts_in_flight(self._codec, len(self._peers)))
        share = self.mean.reshape(len(self._peers), -1)[index]
        ends = np.cumsum([len(part) for part in parts])

        async def mean_of(number: int, part: torch.Tensor) -> torch.Tensor:
            mean = share[ends[number] - len(part) : ends[number]]
            async with slots:
                mean[:] = self._codec.decode(await send(peer, number, part.numpy()))
            return torch.from_numpy(mean)

        try:
            async with asyncio.TaskGroup() as tasks:
                means = [
                    tasks.create_task(mean_of(number, part))
                    for number, part in enumerate(parts)
                ]
            for number, mean in enumerate(means):
                container.register_processed_part(index, number, mean.result())
            self._owing.discard(peer)
        except* AllReduceVoid as voids:
            self.fail(voids.exceptions[0])
        except* PeerError as errors:
            self.fail(AllReduceVoid((peer,), errors.exceptions[0].reason))


class ExactReducer:
    """Means of the parts of one share; stands in for hivemind's ``TensorPartReducer``.

    Args:
        lengths: Values in each part.
        num_senders: Members of the group.
        codec: Of the means.
    """

    def __init__(self, lengths: Sequence[int], num_senders: int, codec: PartCodec):
        loop = asyncio.get_running_loop()
        self._lengths = tuple(lengths)
        self._num_senders = num_senders
        self._codec = codec
        self._arrived: list[dict[int, np.ndarray]] = [{} for _ in lengths]
        self._means = [loop.create_future() for _ in lengths]

    def add(self, sender: int, number: int, part: np.ndarray) -> asyncio.Future:
        """Takes a sender's part; its mean is done once all senders' have come.

        Raises:
            ValueError: There is no such part, or it came before.
        """
        if not 0 <= number < len(self._lengths) or part.shape != (
            self._lengths[number],
        ):
            raise ValueError(f"part {number} of shape {part.shape} is none of ours")
        arrived, mean = self._arrived[number], self._means[number]
        if sender in arrived:
            raise ValueError(f"part {number} came twice")
        arrived[sender] = part
        if len(arrived) == self._num_senders and not mean.done():
            parts = [arrived[s] for s in range(self._num_senders)]
            mean.set_result(self._codec.encode(_mean(parts)))
            arrived.update(dict.fromkeys(arrived))
        return mean

    def lacking(self) -> list[int]:
        """Senders whose next part is due."""
        for arrived, mean in zip(self._arrived, self._means, strict=True):
            if not mean.done():
                return [s for s in range(self._num_senders) if s not in arrived]
        return []

    def fail(self, void: AllReduceVoid) -> None:
        """Lets all that wait for a mean know."""
        for mean in self._means:
            if not mean.done():
                mean.set_exception(void)
                mean.exception()

    def finalize(self) -> None:
        """Called by hivemind's runner at the end of a round."""
        self.fail(AllReduceVoid((), "the round was given up"))


def _mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    total = parts[0].copy()
    # Who takes the mean looks whether it is finite.
    with np.errstate(invalid="ignore", over="ignore"):
        for part in parts[1:]:
            total += part
        total /= np.float32(len(parts))
    return total
