"""Peers that move to another stage while the swarm trains."""

import pytest

from swarm_jax.roles.messages import FetchChunk, FetchManifest, HandOver, Relay


def stage_of(outcome, peer):
    return outcome.run.swarm.servers[peer].state.stage


def counted_in(records, stage):
    return sum(r["microbatches_counted"] for r in records if r["stage"] == stage)


@pytest.mark.parametrize("nth", range(1, 13))
def test_a_peer_moves_at_any_time_and_nothing_is_lost(play, nth):
    async def move(run):
        await run.happens("answered", Relay.op, "stage0-1", nth=nth)
        run.swarm.servers["stage0-1"].move(1)

    outcome = play([2, 1], move, steps=20)
    assert outcome.verdict == "right"
    assert stage_of(outcome, "stage0-1") == 1
    assert set(outcome.states) == {"stage0-0", "stage0-1", "stage1-0"}


def test_it_counts_in_its_new_stage_and_may_come_back(play):
    async def move(run):
        servers = run.swarm.servers
        await run.until(lambda: run.state("stage0-1").step == 2)
        servers["stage0-1"].move(1)
        await run.until(lambda: servers["stage0-1"].state.stage == 1)
        await run.until(lambda: servers["stage0-1"].has_committed)
        records = run.swarm.peer_steps["stage0-1"]
        await run.until(lambda: counted_in(records, stage=1))
        servers["stage0-1"].move(0)

    outcome = play([2, 1], move, steps=30)
    assert outcome.verdict == "right"
    assert stage_of(outcome, "stage0-1") == 0


def test_the_only_peer_of_a_stage_stays(play, caplog):
    async def move(run):
        await run.until(lambda: run.state("stage0-0").step == 1)
        run.swarm.servers["stage0-0"].move(1)

    outcome = play([1, 1], move, steps=4, drain_timeout_s=2.0)
    assert outcome.verdict == "right"
    assert stage_of(outcome, "stage0-0") == 0
    assert "nobody took over" in caplog.text


@pytest.mark.parametrize("op", [FetchManifest.op, FetchChunk.op])
def test_a_mover_whose_old_stage_is_lost_goes_back(play, op):
    """stage0-1 fetches the state of stage 1 while stage0-0, all it has left, dies."""

    async def lose(run):
        await run.until(lambda: run.state("stage0-1").step == 2)
        run.wires.delay("trainer-a", "stage0-0", 0.1)  # it dies before the next commit
        run.at("request_arrived", op, "stage1-0", lambda: run.kill("stage0-0"))
        run.swarm.servers["stage0-1"].move(1)

    outcome = play([2, 1], lose, steps=6)
    assert outcome.verdict == "right"
    assert stage_of(outcome, "stage0-1") == 0
    assert [record["step"] for record in outcome.run.swarm.steps] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("op", [HandOver.op, FetchManifest.op, FetchChunk.op])
def test_a_mover_that_dies_on_the_way_costs_nothing(play, op):
    async def die(run):
        await run.until(lambda: run.state("stage0-1").step == 1)
        mover = run.swarm.servers["stage0-1"]
        await run.until(lambda: mover.state.ledger.counted)
        run.at("request_sent", op, "stage0-1", lambda: run.kill("stage0-1"))
        mover.move(1)

    outcome = play([2, 2], die, steps=8)
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-0", "stage1-0", "stage1-1"}


def test_a_move_is_reported_with_its_times(play):
    async def move(run):
        await run.until(lambda: run.state("stage0-1").step == 2)
        run.swarm.servers["stage0-1"].move(1)

    outcome = play([2, 1], move, steps=20)
    records = outcome.run.swarm.peer_steps["stage0-1"]
    [moved] = [record for record in records if "migration_s" in record]
    assert moved["stage"] == 1 and moved["migrated_from_stage"] == 0
    parts = ("drain_s", "prepare_s", "state_s", "first_microbatch_s")
    assert all(moved[f"migration_{name}"] >= 0 for name in parts)
