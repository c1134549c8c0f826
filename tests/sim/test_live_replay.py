"""A few minutes of a market under the real roles."""

import dataclasses

from swarm_jax.sim.live_replay import Slice, confirm
from swarm_jax.sim.market import SpotMarket

FEW = Slice(
    market=SpotMarket(
        hours=0.25,
        peers=9,
        daily_swing=0.0,
        shortage=0.0,
        preemptions_per_hour=(1.0, 1.0),
        reclaims_per_hour=0.0,
        refill_s=200.0,
    ),
    num_stages=3,
    microbatches=32,
)


def test_the_real_roles_move_peers_as_the_fluid_does():
    confirmed = confirm(FEW, seed=1)
    assert confirmed.moves >= 1
    assert 50 < confirmed.roles_pct < 110 and 50 < confirmed.fluid_pct <= 100


def test_without_moves_the_real_roles_lose_more():
    off = dataclasses.replace(FEW, rules=dataclasses.replace(FEW.rules, strategy="off"))
    with_moves, without = confirm(FEW, seed=1), confirm(off, seed=1)
    assert without.moves == 0
    assert without.roles_pct < with_moves.roles_pct
