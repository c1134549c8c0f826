"""Sends a microbatch to some peer of the next stage, until one has answered."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.ids import MicrobatchID, Round
from swarm_jax.core.router import Router
from swarm_jax.errors import PeerError, PeerTimeout
from swarm_jax.net.protocols import ArraySpec, Message, PeerCalls, spec_of
from swarm_jax.roles.messages import MalformedHeader, Relay, Status, read, to_header
from swarm_jax.roles.peers import SwarmView

logger = logging.getLogger(__name__)

BUSY_PAUSE_S = 0.1
STALE_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from the deeper stages.

    Attributes:
        gradient: Encoded gradient of what was sent; empty for validation.
        loss_sum: Sum over the microbatch's loss tokens.
        trace: Per hop, nearest first: peer, stage, compute_s, hop_s, elapsed_s (deeper
            stages included, earlier tries not), sent_bytes,
            received_bytes, same_host (whether they passed no network).
    """

    gradient: Sequence[np.ndarray]
    loss_sum: float
    trace: list[dict[str, Any]]


class RelayFailed(Exception):
    """No answer; the leader's loop will see that the microbatch is still missing."""


class NoRoute(RelayFailed):
    """No peer of the next stage could be used for a while."""


class OutOfBudget(RelayFailed):
    """The time budget ran out."""


class RefusedRound(RelayFailed):
    """A peer has promised itself to a newer round."""

    def __init__(self, promise: Round):
        super().__init__(f"a peer follows the newer round {promise}")
        self.promise = promise


class Straggled(RelayFailed):
    """It takes much longer than others: another way may be faster."""


class MovedOn(RelayFailed):
    """A peer has other parameters by now than a guest asks for."""


class ModelDiverged(RelayFailed):
    """Independent peers of ``stage`` got non-finite values for this microbatch."""

    def __init__(self, id_: MicrobatchID, stage: int, peers: Sequence[str]):
        names = ", ".join(peer[-6:] for peer in peers)
        super().__init__(
            f"microbatch {id_.index} gave non-finite values in stage {stage} on {names}"
        )
        self.stage = stage
        self.peers = list(peers)


class _TryAnother(Exception):
    """This peer did not answer with a result; another may."""


class NextStage:
    """The sender's side of one boundary between stages.

    Args:
        stage: The stage that is sent to.
        gradient_specs: (dtype name, shape) of what a training answer must hold.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        stage: int,
        calls: PeerCalls,
        view: SwarmView,
        gradient_specs: Sequence[ArraySpec],
    ):
        self.stage = stage
        self._calls = calls
        self._view = view
        self._tuning = config.tuning
        self._swarm = config.swarm_fingerprint()
        self._gradient_specs = list(gradient_specs)
        # Half of what the sender of a fresh microbatch has: less was used up elsewhere.
        self._full_budget_s = config.tuning.relay_timeout_s / 2
        self._router = Router(config.tuning.ban_s, config.tuning.max_ban_s)

    async def send(self, relay: Relay, arrays: Sequence[np.ndarray]) -> Answer:
        """Relays through the next stage and all deeper ones.

        Args:
            relay: ``stage`` and ``budget_s`` are those of this hop.
            arrays: int32 targets [B, L], then the encoded activations.

        Raises:
            RelayFailed: Its children say why.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + relay.budget_s
        nonfinite: list[str] = []
        dead_ends: set[str] = set()
        while True:
            left_s = deadline_s - loop.time()
            if left_s < self._tuning.hop_budget_s:
                raise OutOfBudget(
                    f"{left_s:.1f} s are too little for stage {self.stage}"
                )
            peer = await self._choose(relay, arrays, nonfinite)
            if peer is None:
                raise ModelDiverged(relay.id, self.stage, nonfinite)
            try:
                return await self._try(
                    peer, relay, arrays, deadline_s, nonfinite, dead_ends
                )
            except PeerTimeout as error:
                if left_s > self._full_budget_s:
                    self._ban(peer, relay, error)
                raise OutOfBudget(str(error)) from error
            except (PeerError, MalformedHeader) as error:
                self._ban(peer, relay, error)
                dead_ends.add(peer)
            except _TryAnother:
                pass
            if dead_ends and dead_ends >= set(self._view.online(self.stage)):
                raise NoRoute(f"no peer of stage {self.stage} gives an answer")
            if len(nonfinite) > 1:
                raise ModelDiverged(relay.id, self.stage, nonfinite)

    async def _choose(
        self, relay: Relay, arrays: Sequence[np.ndarray], nonfinite: Sequence[str]
    ) -> str | None:
        """Waits for a usable peer; None if only those that gave non-finite values are.

        Raises:
            NoRoute: There was none for as long as one hop may take.
        """
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._tuning.hop_budget_s
        exclude = relay.avoid | set(nonfinite)
        while True:
            online = self._view.online(self.stage)
            self._router.update(online)
            if nonfinite and not set(online) - exclude:
                return None
            if peer := self._router.pick(arrays[0].size, loop.time(), exclude):
                return peer
            if loop.time() >= give_up_s:
                raise NoRoute(f"no usable peer of stage {self.stage}")
            await asyncio.sleep(BUSY_PAUSE_S)

    async def _try(
        self,
        peer: str,
        relay: Relay,
        arrays: Sequence[np.ndarray],
        deadline_s: float,
        nonfinite: list[str],
        dead_ends: set[str],
    ) -> Answer:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        left_s = deadline_s - start_s
        hop = replace(relay, budget_s=max(0.0, left_s - self._tuning.hop_budget_s / 2))
        reply = await self._calls.call(
            peer, Message(to_header(hop, self._swarm), arrays), timeout_s=left_s
        )
        status = self._status(peer, relay, reply.header, nonfinite)
        if status is Status.NO_ROUTE:
            dead_ends.add(peer)
        if status is not Status.OK:
            raise _TryAnother
        elapsed_s = loop.time() - start_s
        answer = self._answer(relay, reply)
        deeper_s = read(reply.header, "deeper_s", "float")
        self._router.succeeded(peer, arrays[0].size, max(1e-6, elapsed_s - deeper_s))
        answer.trace[0]["elapsed_s"] = elapsed_s
        answer.trace[0]["hop_s"] = elapsed_s - deeper_s
        answer.trace[0]["sent_bytes"] = sum(array.nbytes for array in arrays)
        answer.trace[0]["received_bytes"] = sum(array.nbytes for array in reply.arrays)
        answer.trace[0]["same_host"] = self._calls.is_same_host(peer)
        return answer

    def _status(
        self,
        peer: str,
        relay: Relay,
        header: Mapping[str, Any],
        nonfinite: list[str],
    ) -> Status:
        """Acts on a reply's status; returns it where the sender may go on.

        Raises:
            RelayFailed: No other peer of the stage would do better.
            MalformedHeader: There is no such status.
        """
        try:
            status = Status(header.get("status"))
        except ValueError as error:
            raise MalformedHeader(f"status {header.get('status')!r:.40}") from error
        now_s = asyncio.get_running_loop().time()
        match status:
            case Status.OLD_ROUND:
                raise RefusedRound(read(header, "promise", "Round"))
            case Status.DIVERGED:
                peers = sorted(read(header, "peers", "frozenset[str]"))
                raise ModelDiverged(relay.id, read(header, "stage", "int"), peers)
            case Status.NONFINITE:
                nonfinite.append(peer)
            case Status.WRONG_STEP if relay.is_guest:
                raise MovedOn(f"peer {peer[-6:]} has left step {relay.id.step}")
            case Status.BUSY:
                self._router.pause(peer, now_s + BUSY_PAUSE_S)
            case Status.OK:
                pass
            case _:
                self._router.pause(peer, now_s + STALE_PAUSE_S)
        return status

    def _answer(self, relay: Relay, reply: Message) -> Answer:
        expected = self._gradient_specs if relay.training else []
        if [spec_of(array) for array in reply.arrays] != expected:
            raise MalformedHeader("the answer has the wrong dtype or shape")
        trace = reply.header.get("trace")
        if not isinstance(trace, list) or not trace:
            raise MalformedHeader("the answer has no trace")
        if not all(isinstance(hop, dict) for hop in trace):
            raise MalformedHeader("the answer's trace is malformed")
        return Answer(reply.arrays, read(reply.header, "loss_sum", "float"), trace)

    def _ban(self, peer: str, relay: Relay, error: Exception) -> None:
        self._router.failed(peer, asyncio.get_running_loop().time())
        logger.warning(
            "step %d microbatch %d: stage %d peer %s failed, trying another: %s",
            *relay.id,
            self.stage,
            peer[-6:],
            error,
        )
