"""Peers go where they are needed while the swarm trains."""

import asyncio
from collections import Counter

from swarm_jax.config import RebalancingConfig
from swarm_jax.core.reports import OFFLINE, ONLINE
from swarm_jax.roles.messages import MoveTo
from swarm_jax.roles.wishes import Wishes

QUICK = RebalancingConfig(period_s=1.0, migration_s=0.5, rescue_after_s=0.5)


def peers_by_stage(run):
    return Counter(server.state.stage for server in run.swarm.alive.values())


def peers_by_stage_at_end(outcome):
    servers = outcome.run.swarm.servers.values()
    return Counter(server.state.stage for server in servers)


def test_a_stage_that_lost_two_of_three_gets_a_peer_of_another(play):
    after = []

    async def kill(run):
        await run.until(lambda: run.state("stage1-0").step == 2)
        for peer in ("stage1-0", "stage1-1"):
            await run.swarm.kill(peer)
        await run.until(lambda: peers_by_stage(run)[1] == 2)
        after.append(run.now_s())

    outcome = play([3, 3, 3], kill, steps=40, rebalancing=QUICK)
    assert outcome.verdict == "right"
    assert after
    assert outcome.count("answered", MoveTo.op) == 1


def test_balanced_stages_are_left_alone(play):
    outcome = play([3, 3], steps=40, rebalancing=QUICK)
    assert outcome.verdict == "right"
    assert outcome.ended_s > 5 * QUICK.period_s
    assert outcome.count("answered", MoveTo.op) == 0


def test_a_stage_with_too_many_peers_gives_to_the_slowest(play):
    """A peer of the last stage runs a microbatch in 20 ms, one of the first in 30."""
    outcome = play([5, 2], steps=60, rebalancing=QUICK)
    assert outcome.verdict == "right"
    assert peers_by_stage_at_end(outcome) == {0: 4, 1: 3}


def test_the_papers_rule_can_be_chosen(play):
    async def watch(run):
        await run.until(lambda: peers_by_stage(run) != {0: 5, 1: 1})

    rules = RebalancingConfig(strategy="queue", period_s=1.0)
    outcome = play([5, 1], watch, steps=40, rebalancing=rules)
    assert outcome.verdict == "right"
    assert outcome.count("answered", MoveTo.op) > 0


def test_a_move_asked_for_by_hand_is_granted_once(play):
    rules = RebalancingConfig(strategy="off", period_s=1.0)

    async def ask(run):
        await run.until(lambda: run.state("stage0-1").step == 2)
        directory = run.network.directory("a person")
        prefix = run.swarm.servers["stage0-0"].view.prefix
        await Wishes(directory, prefix).make("stage0-1", 1, name="first", life_s=60.0)
        await run.until(lambda: run.state("stage0-1").stage == 1)
        await asyncio.sleep(3.0)

    outcome = play([2, 1], ask, steps=60, rebalancing=rules)
    assert outcome.verdict == "right"
    assert outcome.run.swarm.servers["stage0-1"].state.stage == 1
    assert outcome.count("answered", MoveTo.op) == 1


def test_a_wish_for_a_peer_that_is_not_there_is_named(play, caplog):
    async def ask(run):
        directory = run.network.directory("a person")
        prefix = run.swarm.servers["stage0-0"].view.prefix
        await Wishes(directory, prefix).make("nobody", 1, name="first", life_s=60.0)
        await Wishes(directory, prefix).make("stage0-0", 9, name="second", life_s=60.0)

    outcome = play([1, 1], ask, steps=10)
    assert outcome.verdict == "right"
    assert "asked to move nobody, which is not there" in caplog.text
    assert outcome.count("answered", MoveTo.op) == 0


def test_a_peer_that_is_long_on_its_way_is_not_sent_for_again(play):
    """To compile takes it ten periods: in all of them stage 1 waits for it alone."""

    async def kill(run):
        run.swarm._prepare_s = 10.0
        await run.until(lambda: run.state("stage1-0").step == 2)
        for peer in ("stage1-0", "stage1-1"):
            await run.swarm.kill(peer)

    outcome = play([4, 3], kill, steps=100, rebalancing=QUICK)
    assert outcome.verdict == "right"
    assert outcome.count("answered", MoveTo.op) == 1
    assert peers_by_stage_at_end(outcome)[0] >= 3


def test_who_stays_is_no_longer_expected_elsewhere(play):
    async def move(run):
        await run.until(lambda: run.state("stage0-0").step == 1)
        run.swarm.servers["stage0-0"].move(1)
        await asyncio.sleep(1.0)
        assert "stage0-0" in await run.network.directory("x").get(key(run))

    def key(run):
        return run.swarm.servers["stage1-0"].view.stage_key(1)

    async def look(run):
        await move(run)
        await run.until(lambda: run.state("stage0-0").state == ONLINE)
        await asyncio.sleep(0.5)
        records = await run.network.directory("x").get(key(run))
        assert records["stage0-0"].value["state"] == OFFLINE

    outcome = play([1, 1], look, steps=20, drain_timeout_s=2.0)
    assert outcome.verdict == "right"


def test_a_stage_that_is_down_to_one_waits_for_who_is_replaced_anyway(play):
    rules = RebalancingConfig(period_s=1.0, migration_s=0.5, rescue_after_s=4.0)
    times_s = {}

    async def kill(run):
        await run.until(lambda: run.state("stage1-0").step == 2)
        await run.swarm.kill("stage1-0")
        times_s["kill"] = run.now_s()
        await run.until(lambda: peers_by_stage(run)[1] == 2)
        times_s["move"] = run.now_s()

    outcome = play([3, 2], kill, steps=60, rebalancing=rules)
    assert outcome.verdict == "right"
    tuning = outcome.run.config.tuning
    noticed_s = tuning.directory_expiry_s - tuning.directory_refresh_s
    assert times_s["move"] - times_s["kill"] >= noticed_s + rules.rescue_after_s
