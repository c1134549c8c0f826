"""Random schedules: each a function of its seed."""

import random
from collections.abc import Mapping, Sequence

from swarm_jax.sim.faults import LASTING, MESSAGES, TRAINER, Fault, Schedule

KINDS = ("crash", "crash", "drain", "join", "join", "move", *LASTING, *MESSAGES)
SERVER_ONLY = ("drain", "join", "move", "refuse", "lose_answer")
DURATIONS_S = (0.05, 0.5, 2.0, 4.0, 15.0)

CLOSES = {"collect": 10, "prepare": 5, "commit": 5}
"""What a peer is asked, and how often in a run, about."""
RELAY = {"relay": 16}
REPAIRS = {"resync": 1, "drop": 1, "restart": 1}
SAVES = {"save": 2, "complete": 2}
CHANGES = {"manifest": 3, "chunk": 3, "hand_over": 2}
"""What peers ask each other when one joins or leaves."""
TIED = {"tied": 1}
"""What one end of a model with a tied head asks the other."""
DEVICE = {
    "device_started forward": 12,
    "device_started backward": 12,
    "device_done backward": 12,
    "device_started apply": 4,
    "device_done apply": 4,
    "device_done load_reduced": 4,
    "device_done reduce_alone": 4,
    "device_done load_state": 1,
    "allreduce_joined allreduce": 4,
    "allreduce_ready allreduce": 4,
}


def random_schedule(seed: int, *, tied_head: bool = False) -> Schedule:
    """Every third schedule strikes only while steps are closed.

    Args:
        tied_head: Those with one are others than those without: of two stages at least,
            and in every second one an end gets a step again.
    """
    rng = random.Random(seed)
    stages = rng.randint(2 if tied_head else 1, 4)
    peers = tuple(rng.randint(1, 3) for _ in range(stages))
    trainers = rng.randint(1, 2)
    only_closes = rng.random() < 0.34
    ops, first = CLOSES, ()
    if tied_head:
        ops = CLOSES | TIED
        if rng.random() < 0.5:
            peers, first = _an_end_gets_a_step_again(rng, peers)
    faults = tuple(
        _random_fault(rng, peers, ops, only_closes) for _ in range(rng.randint(1, 8))
    )
    return Schedule(peers, trainers, (*first, *faults), tied_head)


def _an_end_gets_a_step_again(
    rng: random.Random, peers: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[Fault, ...]]:
    """Of two peers one stands still, and the other dies between prepare and commit.

    Returns:
        The peers of each stage, and the two faults.
    """
    end, nth = rng.choice((0, len(peers) - 1)), rng.randint(1, 3)
    sleeps = Fault(
        kind="hang",
        peer=f"stage{end}-1",
        when="answered commit",
        nth=nth,
        for_s=max(DURATIONS_S),
    )
    dies = Fault(
        kind="crash",
        peer=f"stage{end}-0",
        when="request_arrived commit",
        nth=nth + 1,
    )
    return (*peers[:end], 2, *peers[end + 1 :]), (sleeps, dies)


def _random_fault(
    rng: random.Random,
    peers: Sequence[int],
    closes: Mapping[str, int],
    only_closes: bool,
) -> Fault:
    kind = rng.choice(KINDS)
    peer = _random_peer(rng, peers)
    if peer == TRAINER and kind in SERVER_ONLY:
        peer = "stage0-0"
    place = peer if rng.random() < 0.8 else _random_peer(rng, peers)
    when, nth = _random_event(rng, place, closes, only_closes)
    if rng.random() < 0.15:
        when, nth, place = "", 1, peer
    return Fault(
        kind=kind,
        peer=peer,
        when=when,
        where="" if place == peer else place,
        nth=nth,
        at_s=0.0 if when else round(rng.uniform(0.0, 1.5), 2),
        for_s=rng.choice(DURATIONS_S),
        other="" if rng.random() < 0.6 else _random_peer(rng, peers),
    )


def _random_peer(rng: random.Random, peers: Sequence[int]) -> str:
    """The trainer, a peer from the start, or (one in ten) the first that joins."""
    if rng.random() < 0.2:
        return TRAINER
    stage = rng.randrange(len(peers))
    joins = rng.random() < 0.1
    return f"stage{stage}-{peers[stage] if joins else rng.randrange(peers[stage])}"


def _random_event(
    rng: random.Random, place: str, closes: Mapping[str, int], only_closes: bool
) -> tuple[str, int]:
    """When and which time, of what happens at ``place``.

    Args:
        closes: What a peer is asked while a step is closed.
    """
    if place == TRAINER:
        ops = CLOSES if only_closes else CLOSES | RELAY | SAVES
        return _one_of(rng, ("request_sent", "answer_arrived"), ops)
    arrives = ("approaching", "request_arrived", "answered")
    if only_closes or rng.random() < 0.5:
        return _one_of(rng, arrives, closes if only_closes else closes | RELAY)
    if rng.random() < 0.6:
        when = rng.choice(sorted(DEVICE))
        return when, rng.randint(1, DEVICE[when])
    everything = (*arrives, "request_sent", "answer_arrived")
    return _one_of(rng, everything, CHANGES | REPAIRS | SAVES | RELAY)


def _one_of(
    rng: random.Random, kinds: Sequence[str], ops: Mapping[str, int]
) -> tuple[str, int]:
    op = rng.choice(sorted(ops))
    return f"{rng.choice(kinds)} {op}", rng.randint(1, ops[op])
