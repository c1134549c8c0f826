"""The one oracle of all swarms of real processes: nothing lost, nothing twice.

Tolerances: losses to 1e-5 relative. Parameters to 2e-4 of the largest value of their
array: the swarm adds up float32 gradients in another order, and Adam's first steps turn
a relative error of a small gradient into the same relative error of a whole update.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pytest

from tests.integration.by_hand import SwarmByHand

Arrays = Mapping[str, np.ndarray]

LOSS_TOLERANCE = 1e-5
PARAMETER_TOLERANCE = 2e-4


def check(
    swarm: SwarmByHand,
    single: SwarmByHand,
    survivors: Iterable[str],
    woken: Iterable[str] = (),
) -> None:
    """The swarm's steps and its survivors' parameters are those of one process.

    Args:
        woken: Survivors that were frozen or cut off in the middle of a step.
    """
    survivors = list(survivors)
    check_steps(swarm, single)
    check_parameters(swarm, single, survivors)
    check_replicas(swarm, survivors)
    check_lineages(swarm, frozenset(woken))


def check_steps(swarm: SwarmByHand, single: SwarmByHand) -> None:
    """Each step was closed once, by whichever trainer, with exact ledgers."""
    ours = sorted(swarm.closed(), key=lambda record: record["step"])
    check_records(ours, single)


def check_records(ours: list[dict], single: SwarmByHand) -> None:
    """``check_steps`` of these records, by step."""
    reference = single.records("trainer")
    assert [r["step"] for r in ours] == [r["step"] for r in reference]
    for a, b in zip(ours, reference, strict=True):
        assert a["microbatches_counted_once"] == a["microbatches_expected"] == 6
        assert a["microbatches_lost"] == a["microbatches_counted_twice"] == 0
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=LOSS_TOLERANCE)
        norm = b["gradient_norm"]
        assert a["gradient_norm"] == pytest.approx(norm, rel=10 * LOSS_TOLERANCE)
    loss = reference[-1]["validation_loss"]
    assert ours[-1]["validation_loss"] == pytest.approx(loss, rel=LOSS_TOLERANCE)


def check_parameters(
    swarm: SwarmByHand, single: SwarmByHand, survivors: Iterable[str]
) -> None:
    reference = single.parameters("single")
    compared = set()
    for name in survivors:
        parameters = swarm.parameters(name)
        _check_close(name, parameters, reference)
        compared |= parameters.keys()
    assert compared == reference.keys()


def check_checkpoint(swarm: SwarmByHand, single: SwarmByHand) -> None:
    """The parameters of the swarm's newest checkpoint, all layers of them."""
    reference = single.parameters("single")
    parameters = swarm.checkpoint()
    _check_close("checkpoint", parameters, reference)
    assert parameters.keys() == reference.keys()


def _check_close(name: str, parameters: Arrays, reference: Arrays) -> None:
    for key, array in parameters.items():
        error = np.max(np.abs(array - reference[key]))
        scale = np.max(np.abs(reference[key]))
        assert error <= PARAMETER_TOLERANCE * scale, (name, key, error / scale)


def check_replicas(swarm: SwarmByHand, survivors: Iterable[str]) -> None:
    """Replicas of a stage have bit for bit the same parameters."""
    first: dict[str, dict[str, np.ndarray]] = {}
    for name in survivors:
        ours = swarm.parameters(name)
        theirs = first.setdefault(name[:6], ours)
        assert ours.keys() == theirs.keys()
        for key, array in ours.items():
            assert array.tobytes() == theirs[key].tobytes(), (name, key)


def check_lineages(swarm: SwarmByHand, woken: frozenset[str]) -> None:
    """All peers of a stage, dead ones too, agreed after each step, not only at last.

    Who wakes with a prepared gradient may commit that one, rounded otherwise, while the
    others have committed that of a later round: then it fetches their state. Once.
    (A peer has no record of a step whose state it fetched.)
    """
    chains: dict[tuple[int, int], set[str]] = {}
    records = {name: swarm.records(name) for name in swarm.servers}
    for name in records.keys() - woken:
        for record in records[name]:
            key = record["stage"], record["step"]
            chains.setdefault(key, set()).add(record["lineage"])
    assert chains and all(len(lineages) == 1 for lineages in chains.values()), chains
    own = Counter(
        name
        for name in woken
        for record in records[name]
        if {record["lineage"]}
        != chains.setdefault((record["stage"], record["step"]), {record["lineage"]})
    )
    assert all(count == 1 for count in own.values()), own
