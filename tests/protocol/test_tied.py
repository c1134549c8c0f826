"""A head tied to the embedding: two stages, two copies of a table, one gradient."""

import pytest

from swarm_jax.core.reports import JOINING
from swarm_jax.roles import stage_control
from swarm_jax.roles.messages import FetchChunk, FetchTied, Status, refusal
from swarm_jax.roles.reducing import Reducing

TIED = FetchTied.op


async def the_gradient_of_step_1_dies(run, *stages):
    """Two peers at these stages: one freezes, the other prepares step 1 and is killed.

    The other stages commit the step; the frozen peers wake when they have.
    """
    for stage in stages:
        await run.until(lambda stage=stage: run.state(f"stage{stage}-1").step == 1)
        run.network.freeze(f"stage{stage}-1")
    for stage in stages:
        peer = f"stage{stage}-0"
        run.at(
            "request_arrived", "commit", peer, lambda peer=peer: run.kill(peer), step=1
        )
    others = {"stage0-0", "stage1-0", "stage2-0"} - {f"stage{s}-0" for s in stages}
    await run.until(lambda: all(run.state(peer).step == 2 for peer in others))
    for stage in stages:
        run.network.thaw(f"stage{stage}-1")


@pytest.mark.parametrize("peers", [[1, 1], [3, 2], [2, 1, 3], [1, 3, 1, 1]])
def test_both_copies_are_those_of_plain_training(play, peers):
    outcome = play(peers, tied_head=True)
    assert outcome.verdict == "right"
    assert outcome.count("answered", TIED) == 0


@pytest.mark.parametrize(("stage", "peers"), [(0, [2, 1, 1]), (2, [1, 1, 2])])
def test_an_end_that_lags_gets_the_tied_gradient_of_the_other(rule, play, stage, peers):
    """The other end has committed the step, so it takes part in no round of it again.

    Off: it does not say what it has applied.
    """

    async def say_nothing(reducing, request):
        return refusal(Status.UNKNOWN_STATE)

    rule.off(Reducing, "_give", say_nothing)
    outcome = play(
        peers, lambda run: the_gradient_of_step_1_dies(run, stage), tied_head=True
    )
    assert outcome.verdict == rule.gives("right", off="not finished")
    assert outcome.count("answered", TIED) >= 1


def test_two_ends_that_lag_reduce_the_tied_gradient_again(play):
    """Only the middle stage has committed: nobody has applied the tied gradient."""
    outcome = play(
        [2, 1, 2], lambda run: the_gradient_of_step_1_dies(run, 0, 2), tied_head=True
    )
    assert outcome.verdict == "right"
    assert outcome.count("request_sent", TIED) == 0


def test_any_peer_of_the_other_end_gives_it(play):
    """The first that is asked dies."""

    async def one_donor_dies(run):
        run.at("request_arrived", TIED, "stage0-0", lambda: run.kill("stage0-0"))
        await the_gradient_of_step_1_dies(run, 2)

    outcome = play([2, 1, 2], one_donor_dies, tied_head=True)
    assert outcome.verdict == "right"
    assert outcome.count("answered", TIED, "stage0-1") == 1


def test_a_joiner_that_caught_up_gives_it(play):
    """It took part in the round as a joiner, and applied the step after its download.

    Then the only other peer of its end is killed.
    """

    async def only_the_joiner_is_left(run):
        joiner = "stage0-1"
        await run.until(lambda: run.state("stage0-0").step == 1)
        handle = run.swarm.servers["stage0-0"].handle

        async def slow(sender, message):
            if message.header["op"] == FetchChunk.op:
                await run.until(lambda: run.state("stage0-0").step == 2)
            return await handle(sender, message)

        run.swarm.servers["stage0-0"].handle = slow
        run.swarm.start_peer(0)
        run.network.freeze("stage2-1")
        joined = run.happens("allreduce_joined", "allreduce", joiner)
        await joined
        assert run.state(joiner).state == JOINING
        await run.happens("request_arrived", "commit", "stage2-0")
        run.kill("stage2-0")
        await run.until(lambda: run.state(joiner).step == 2)
        run.kill("stage0-0")
        run.network.thaw("stage2-1")

    outcome = play([1, 1, 2], only_the_joiner_is_left, tied_head=True, steps=4)
    assert outcome.verdict == "right"
    assert outcome.count("answered", TIED, "stage0-1") >= 1


def test_who_has_begun_to_join_is_not_taken_for_a_member(rule, play):
    """stage1-0 has counted, and frees its sum before it hears of prepare.

    Off: stage1-1 gets a gradient without that sum, and holds it for the step's.
    """

    class Fits:
        def __ne__(self, other):
            return False

    rule.off(stage_control, "ledger_digest", lambda counted: Fits())
    held = []

    def begin_to_join(run):
        run.swarm.servers["stage1-0"]._joining.start()
        run.at(
            "request_arrived",
            "collect",
            "stage1-1",
            lambda: held.append(run.state("stage1-1").prepared),
        )

    async def strike(run):
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.at("request_arrived", "prepare", "stage1-0", lambda: begin_to_join(run))

    outcome = play([1, 2], strike)
    assert outcome.verdict == "right"
    assert (held[0] is None) == rule.is_on
