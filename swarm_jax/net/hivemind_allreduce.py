"""``AllReduce`` through hivemind's butterfly, with the group given: no matchmaking.

Rounds run over calls of their own protocol, so that they share no stream with
microbatches. What arrives before this peer has joined its round waits for that.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import torch

from swarm_jax.errors import AllReduceVoid, BadMessage
from swarm_jax.net.hivemind_butterfly import (
    PART_VALUES,
    ExactRunner,
    cut_like,
    cut_shares,
)
from swarm_jax.net.hivemind_calls import HivemindCalls
from swarm_jax.net.hivemind_node import HivemindNode
from swarm_jax.net.hivemind_parts import part_codec
from swarm_jax.net.parts import PartCodec
from swarm_jax.net.protocols import ArraySpec, Message

MAX_REMEMBERED_ROUNDS = 1024
BUDGET_BYTES = 512 * 1024 * 1024
"""Parts that wait for others (``parts_in_flight`` of each), and a fair share each."""


@dataclass(frozen=True, slots=True)
class _Round:
    """A round that this peer has joined. ``digest`` names its members and shapes."""

    digest: bytes
    peers: tuple[str, ...]
    runner: ExactRunner


class HivemindAllReduce:
    """This peer's rounds of all-reduce; made by ``create``.

    float32 only, rounded on the way if the wire is narrower. Besides what the Protocol
    says: a group id can be used once, and the order in which ``peers`` are named does
    not matter.
    """

    def __init__(
        self,
        node: HivemindNode,
        calls: HivemindCalls,
        join_timeout_s: float,
        codec: PartCodec,
    ):
        self._node = node
        self._codec = codec
        self._calls = calls
        self._join_timeout_s = join_timeout_s
        self._rounds: dict[str, _Round] = {}
        self._over: OrderedDict[str, AllReduceVoid] = OrderedDict()
        self._changed = asyncio.Event()

    @classmethod
    async def create(
        cls,
        node: HivemindNode,
        protocol: str,
        *,
        heartbeat_s: float,
        join_timeout_s: float = 60.0,
        wire: str = "float32",
        authorised: Callable[[str], bool] = lambda peer: True,
        same_host: bool = True,
    ) -> "HivemindAllReduce":
        """Starts to take in the parts of other members.

        Args:
            node: The started node; it is not closed with this object.
            protocol: Who may meet: contains the swarm's fingerprint and the stage.
            heartbeat_s: A member that hangs is noticed after three of these.
            join_timeout_s: How long a part waits for this peer to join its round, if
                its sender waits that long.
            wire: How parts travel: a key of ``PART_CODECS``, the same for all members.
            authorised: Whether a peer may take part at all.
            same_host: Whether members of this user on this host are met directly.
        """
        # Its threads, waiting for each other on busy cores, make a round of 1 MB take
        # 210 ms instead of 10 ms. Nothing else in this process uses torch.
        torch.set_num_threads(1)
        calls = HivemindCalls(
            node,
            protocol,
            heartbeat_s=heartbeat_s,
            max_message_bytes=PART_VALUES * 4,
            budget_bytes=BUDGET_BYTES,
            busy=_void_message(AllReduceVoid((node.peer_id,), "it has no memory left")),
            authorised=authorised,
            same_host=same_host,
        )
        self = cls(node, calls, join_timeout_s, part_codec(wire))
        await calls.serve(self)
        return self

    async def close(self) -> None:
        await self._calls.close()

    async def average(
        self,
        group_id: str,
        peers: Sequence[str],
        arrays: Sequence[np.ndarray],
        *,
        timeout_s: float,
    ) -> list[np.ndarray]:
        """As ``AllReduce.average``.

        Raises:
            ValueError: Not float32, a group without this peer or with one named twice,
                or a group id that was used before.
        """
        members = tuple(sorted(peers))
        self._check(members, arrays)
        if len(members) == 1 or not any(array.size for array in arrays):
            return [np.array(array) for array in arrays]
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        shares = await asyncio.to_thread(cut_shares, arrays, len(members))
        round_ = self._join(group_id, members, arrays, shares, timeout_s)
        collecting = asyncio.ensure_future(_collect(round_.runner))
        void = AllReduceVoid((self._node.peer_id,), "the round was cancelled")
        try:
            await asyncio.wait(
                {collecting, round_.runner.failure},
                timeout=deadline_s - asyncio.get_running_loop().time(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if collecting.done():
                void = AllReduceVoid((), "the round is over")
                return cut_like(collecting.result(), arrays)
            reason = f"incomplete after {timeout_s:g} s"
            void = AllReduceVoid(round_.runner.lacking(), reason)
            if round_.runner.failure.done():
                void = round_.runner.failure.result()
            raise void
        finally:
            collecting.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )
            collecting.cancel()
            self._leave(group_id, void)
            await asyncio.wait({collecting})

    def admit(
        self, sender: str, header: Mapping[str, Any], specs: Sequence[ArraySpec]
    ) -> Message | None:
        """As ``Service.admit``: parts of rounds that are over never get in."""
        group, digest, part = (header.get(k) for k in ("group", "digest", "part"))
        if not (
            isinstance(group, str)
            and isinstance(digest, bytes)
            and type(part) is int
            and self._codec.fits(specs)
        ):
            raise BadMessage(sender, "no part of an all-reduce")
        try:
            self._find(sender, header)
        except AllReduceVoid as void:
            return _void_message(void)
        return None

    async def handle(self, sender: str, message: Message) -> Message:
        """As ``Service.handle``: answers a part with its mean over all members."""
        header = message.header
        try:
            round_ = await self._joined(sender, header)
            part = self._codec.decode(message.arrays)
            mean = await round_.runner.aggregate(sender, header["part"], part)
        except AllReduceVoid as void:
            return _void_message(void)
        return Message({}, mean)

    def _check(self, members: Sequence[str], arrays: Sequence[np.ndarray]) -> None:
        if self._node.peer_id not in members or len(set(members)) < len(members):
            raise ValueError(
                f"the group {list(members)} must name this peer "
                f"({self._node.peer_id}), and nobody twice"
            )
        for array in arrays:
            if array.dtype != np.float32:
                raise ValueError(f"all-reduce is for float32 arrays, not {array.dtype}")

    def _join(
        self,
        group_id: str,
        members: tuple[str, ...],
        arrays: Sequence[np.ndarray],
        shares: Sequence[np.ndarray],
        timeout_s: float,
    ) -> _Round:
        if group_id in self._rounds or group_id in self._over:
            raise ValueError(f"group id {group_id} was used before: take a new one")
        digest = _digest(members, arrays)

        async def exchange(
            peer: str, number: int, part: np.ndarray
        ) -> Sequence[np.ndarray]:
            header = {"group": group_id, "digest": digest, "part": number}
            request = Message(header, self._codec.encode(part))
            answer = await self._calls.call(peer, request, timeout_s=timeout_s)
            return _mean_in(answer, peer, part.size, members, self._codec)

        runner = ExactRunner(
            p2p=self._node.p2p,
            group_id=group_id,
            peers=members,
            shares=shares,
            exchange=exchange,
            codec=self._codec,
        )
        self._rounds[group_id] = _Round(digest, members, runner)
        self._wake_waiting()
        return self._rounds[group_id]

    def _leave(self, group_id: str, void: AllReduceVoid) -> None:
        runner = self._rounds.pop(group_id).runner
        runner.fail(void)
        runner.finalize(cancel=True)
        self._over[group_id] = void
        if len(self._over) > MAX_REMEMBERED_ROUNDS:
            self._over.popitem(last=False)
        self._wake_waiting()

    def _find(self, sender: str, header: Mapping[str, Any]) -> _Round | None:
        """The round that a part belongs to; None when this peer has not joined it yet.

        Raises:
            AllReduceVoid: The part must not count; what to answer.
        """
        group = header["group"]
        if group in self._over:
            old = self._over[group]
            raise AllReduceVoid(old.missing or (self._node.peer_id,), old.reason)
        round_ = self._rounds.get(group)
        if round_ and (round_.digest != header["digest"] or sender not in round_.peers):
            raise AllReduceVoid(
                (self._node.peer_id,), "it has other members or shapes in this group"
            )
        return round_

    async def _joined(self, sender: str, header: Mapping[str, Any]) -> _Round:
        try:
            async with asyncio.timeout(self._join_timeout_s):
                while (round_ := self._find(sender, header)) is None:
                    await self._changed.wait()
                return round_
        except TimeoutError as error:
            raise AllReduceVoid(
                (self._node.peer_id,),
                f"it did not join within {self._join_timeout_s:g} s",
            ) from error

    def _wake_waiting(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _collect(runner: ExactRunner) -> np.ndarray:
    async for _ in runner:
        pass
    return runner.mean


def _digest(members: Sequence[str], arrays: Sequence[np.ndarray]) -> bytes:
    """Equal only for members that agree on who takes part, and with which shapes."""
    described = [list(members), [list(array.shape) for array in arrays]]
    return hashlib.sha256(msgpack.packb(described)).digest()


def _void_message(void: AllReduceVoid) -> Message:
    return Message({"void": list(void.missing), "reason": void.reason})


def _mean_in(
    answer: Message,
    peer: str,
    size: int,
    members: Sequence[str],
    codec: PartCodec,
) -> Sequence[np.ndarray]:
    """The encoded mean that a member answered a part of so many values with.

    Raises:
        AllReduceVoid: The member told us that the round is void.
        BadMessage: The answer is neither.
    """
    lacked, reason = answer.header.get("void"), answer.header.get("reason")
    if isinstance(lacked, list) and isinstance(reason, str):
        named = tuple(member for member in members if member in lacked)
        raise AllReduceVoid(named or (peer,), f"{peer} says: {reason:.200}")
    if not codec.is_part(answer.arrays, size):
        raise BadMessage(peer, "no mean of the part that it was sent")
    return answer.arrays
