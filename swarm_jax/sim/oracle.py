"""What must be true at the end of every run, whatever struck it on the way.

The reference is a plain loop over the modelled arithmetic: no roles, no network, no
ledgers. It and the swarm share nothing but the hash that makes gradients.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from swarm_jax.core.ledger import audit
from swarm_jax.core.reports import JOINING
from swarm_jax.net.local import Event
from swarm_jax.roles.stage_server import StageServer
from swarm_jax.sim.checkpoints import MemoryFolder
from swarm_jax.sim.modelled import (
    GRADIENT_BITS,
    WIDTH,
    ModelledTokens,
    integers,
    modelled_config,
)


class Broken(Exception):
    """The oracle says no."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What plain training gives.

    Attributes:
        states: Parameters and moments of each stage at the end, as bytes.
        losses, norms: Of each step.
    """

    states: Sequence[bytes]
    losses: Sequence[float]
    norms: Sequence[float]


@cache
def train_sequentially(
    num_stages: int,
    steps: int,
    skipped: int | None = None,
    tied_head: bool = False,
    delayed_updates: bool = False,
) -> Reference:
    """One process, one microbatch after the other.

    A tied table is one here, and comes to the states of the first and the last stage.

    Args:
        skipped: A step without an update; it has no loss and no norm.
        delayed_updates: Gradients are taken with the weights of the step before, which
            come to the states.
    """
    config = modelled_config(num_stages=num_stages, steps=steps)
    data = ModelledTokens(config)
    ends = {0, num_stages - 1} if tied_head and num_stages > 1 else set()
    params = [np.full(WIDTH, float(stage)) for stage in range(num_stages)]
    moments = [np.zeros(WIDTH) for _ in range(num_stages)]
    table = table_moments = np.zeros(WIDTH)
    losses, norms = [], []

    def weights_now() -> list[np.ndarray]:
        weights = []
        for stage in range(num_stages):
            own = [params[stage], *([table] if stage in ends else [])]
            moved = [moments[stage], *([table_moments] if stage in ends else [])]
            weights.append(np.array(own) + np.array(moved) / 2**GRADIENT_BITS)
        return weights

    before = weights_now()
    for step in range(steps):
        current = weights_now()
        weights, before = (before if delayed_updates else current), current
        if step == skipped:
            continue
        gradients = [np.zeros(WIDTH) for _ in range(num_stages)]
        of_table = np.zeros(WIDTH)
        loss = 0.0
        for index in range(config.microbatches_per_step):
            batch = data.microbatch(step, index)
            loss += _add_microbatch(
                weights, gradients, of_table, ends, batch.inputs, batch.targets
            )
        tokens = data.step_loss_tokens(step)
        means = [gradient / tokens for gradient in gradients]
        mean_of_table = of_table / tokens
        squares = [float((mean**2).sum()) for mean in (*means, mean_of_table)]
        norm = math.sqrt(math.fsum(squares))
        for stage, mean in enumerate(means):
            params[stage] = params[stage] + mean
            moments[stage] = integers(b"m", moments[stage], mean, np.array([norm]))
        table = table + mean_of_table
        table_moments = integers(b"m", table_moments, mean_of_table, np.array([norm]))
        losses.append(loss / tokens)
        norms.append(norm)
    states = []
    for stage in range(num_stages):
        tied = stage in ends
        leaves = [params[stage], *([table] if tied else [])]
        leaves += [moments[stage], *([table_moments] if tied else [])]
        leaves += [before[stage]] if delayed_updates else []
        states.append(b"".join(leaf.tobytes() for leaf in leaves))
    return Reference(states, losses, norms)


def _add_microbatch(
    weights: Sequence[np.ndarray],
    gradients: list[np.ndarray],
    of_table: np.ndarray,
    ends: Collection[int],
    tokens: np.ndarray,
    targets: np.ndarray,
) -> float:
    """Forward and backward through all stages; returns the loss.

    Args:
        gradients: Of each stage; it is added to.
        of_table: That of the table which ``ends`` share; it is added to.
    """
    inputs = [tokens]
    for weight in weights[:-1]:
        inputs.append(integers(b"y", weight, inputs[-1]))
    incoming, loss = targets, 0.0
    for stage in reversed(range(len(weights))):
        gradient = integers(b"g", weights[stage], inputs[stage], incoming)
        if stage in ends:
            of_table += integers(b"t", weights[stage], inputs[stage], incoming)
        incoming = integers(b"x", weights[stage], inputs[stage], incoming)
        gradients[stage] = gradients[stage] + gradient
        loss = loss or float(gradient[0])
    return loss


class Closes:
    """Notes with which ledgers each update was made, at the devices that made it.

    Whoever of a group dies afterwards was heard when it gave its gradient; so what is
    checked does not depend on anybody's memory, and on no trainer's word. Rounds of a
    tied table are of two stages, with the ledgers of the rounds beside them.

    Attributes:
        groups: Ledgers by peer, by group of an all-reduce, or of one peer alone.
        terms: Trainers and term numbers that asked anybody for anything.
    """

    def __init__(self, servers: Mapping[str, StageServer]):
        self._servers = servers
        self._means: dict[tuple[str, int, int], str] = {}
        self._updates: dict[tuple[int, int, int], set[str]] = defaultdict(set)
        self.groups: dict[str, dict[str, frozenset[int]]] = defaultdict(dict)
        self.terms: set[tuple[int, str]] = set()

    def hear(self, event: Event) -> None:
        match event.kind, event.op:
            case "request_sent", "collect":
                self.terms.add(tuple(event.header["round"][:2]))
            case "allreduce_joined" | "allreduce_ready", _ if _is_tied(event):
                return
            case "allreduce_joined", _:
                state = self._servers[event.peer].state
                joins = state.state == JOINING
                counted = frozenset() if joins else state.ledger.counted
                self.groups[event.header["group_id"]][event.peer] = counted
            case "device_started", "reduce_alone":
                state = self._servers[event.peer].state
                group_id = f"{event.peer} alone/{state.generation}/{state.step}"
                self.groups[group_id] = {event.peer: state.ledger.counted}
                self._means[event.peer, state.generation, state.step] = group_id
            case "allreduce_ready", _:
                group_id = event.header["group_id"]
                generation = self._servers[event.peer].state.generation
                step = int(group_id.split("/")[2])
                self._means[event.peer, generation, step] = group_id
            case "device_started", "apply":
                state = self._servers[event.peer].state
                group = self._means[event.peer, state.generation, state.step]
                self._updates[state.generation, state.step, state.stage].add(group)

    def check(self, num_stages: int, steps: int, microbatches: int) -> None:
        """Every step of every stage was made, and only with exact ledgers.

        A run that went back to a checkpoint has its first steps from before.
        """
        made = {(step, stage) for _, step, stage in self._updates}
        for step in range(steps):
            for stage in range(num_stages):
                if (step, stage) not in made:
                    raise Broken(f"stage {stage} never took step {step}")
        for (_, step, stage), groups in self._updates.items():
            for ledgers in map(self.groups.get, groups):
                counts = audit({stage: list(ledgers.values())}, microbatches)
                if not counts.exact:
                    raise Broken(f"stage {stage} took step {step} with {ledgers}")


def _is_tied(event: Event) -> bool:
    return event.header["group_id"].split("/")[1] == "tied"


def check_records(
    records: Sequence[Mapping[str, Any]],
    reference: Reference,
    terms: int,
    *,
    may_repeat: bool = False,
) -> None:
    """Each step is in the trainers' records, once, with its exact figures.

    The record of one step may die with each trainer, between commit and note.

    Args:
        terms: How many terms there were.
        may_repeat: The run may have been started again.
    """
    steps = [record["step"] for record in records]
    missing = set(range(1, len(reference.losses) + 1)) - set(steps)
    if len(missing) > terms - 1:
        raise Broken(f"no record of steps {sorted(missing)}, and {terms} terms")
    if len(set(steps)) < len(steps) and not may_repeat:
        raise Broken(f"records of steps {steps}: some are there twice")
    for record in records:
        right = {
            "train_loss": reference.losses[record["step"] - 1],
            "gradient_norm": reference.norms[record["step"] - 1],
            "microbatches_counted_once": record["microbatches_expected"],
            "microbatches_lost": 0,
            "microbatches_counted_twice": 0,
        }
        wrong = {name: record.get(name) for name in right}
        if wrong != right:
            raise Broken(f"step {record['step']} is recorded as {wrong}, not {right}")


def check_checkpoints(
    folder: MemoryFolder,
    num_stages: int,
    tied_head: bool = False,
    delayed_updates: bool = False,
) -> None:
    """What is complete is the state of that step, in every stage."""
    for step, digests in folder.complete.items():
        if set(digests) != set(range(num_stages)):
            raise Broken(f"the checkpoint of step {step} has stages {sorted(digests)}")
        reference = train_sequentially(
            num_stages, step, tied_head=tied_head, delayed_updates=delayed_updates
        )
        for stage, digest in digests.items():
            saved_stage, position, arrays = folder.states[digest]
            state = b"".join(array.tobytes() for array in arrays)
            right = stage, step, reference.states[stage]
            if (saved_stage, position.step, state) != right:
                raise Broken(f"the checkpoint of step {step} is wrong in stage {stage}")
