"""Traces of a spot market."""

import dataclasses

import pytest

from swarm_jax.sim.market import HOUR_S, SpotMarket, draw_trace

MARKET = SpotMarket()


def peers_over_time(market, seed):
    peers = market.peers
    for change in draw_trace(market, seed):
        peers += 1 if change.comes else -1
        yield change.at_s, peers


def test_a_seed_is_a_trace():
    assert draw_trace(MARKET, 3) == draw_trace(MARKET, 3)
    assert draw_trace(MARKET, 3) != draw_trace(MARKET, 4)


@pytest.mark.parametrize("seed", range(3))
def test_a_trace_is_in_order_and_takes_only_peers_that_are_there(seed):
    times, peers = zip(*peers_over_time(MARKET, seed), strict=True)
    assert list(times) == sorted(times)
    assert 0 <= times[0] and times[-1] < MARKET.hours * HOUR_S
    assert 0 <= min(peers) and max(peers) <= MARKET.peers


def test_capacity_has_a_daily_cycle_and_ends_in_a_shortage():
    assert MARKET.capacity(0) == MARKET.peers == MARKET.capacity(24)
    assert MARKET.capacity(12) == pytest.approx(0.4 * MARKET.peers)
    nearly = dataclasses.replace(MARKET, shortage=0.0).capacity(32)
    assert MARKET.capacity(32) == pytest.approx(0.15 * nearly)


def test_peers_follow_the_capacity_of_a_market_without_reclaims():
    market = dataclasses.replace(MARKET, reclaims_per_hour=0.0, peers=1000)
    for at_s, peers in peers_over_time(market, 0):
        assert 0.7 * market.capacity(at_s / HOUR_S) < peers <= market.peers
