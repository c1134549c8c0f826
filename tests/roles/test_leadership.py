"""What peers that do not answer cost a leader; exact arithmetic, on virtual time."""

import asyncio
from itertools import pairwise

from swarm_jax.net.protocols import Message
from swarm_jax.roles.leadership import VOID, Leadership
from swarm_jax.roles.messages import Collect, Status
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.modelled import ModelledCompute, ModelledTokens, modelled_config
from swarm_jax.sim.swarm import SimulatedSwarm

FROZEN_S = 30.0


def train_with_a_freeze(peers_per_stage):
    """Times at which steps closed after a peer of stage 1 froze, and its ledgers."""
    config = modelled_config(num_stages=2, steps=20)
    config.tuning.directory_expiry_s = 60.0
    swarm = SimulatedSwarm(
        config,
        data=ModelledTokens(config),
        make_compute=lambda stage: ModelledCompute(config, stage),
        peers_per_stage=peers_per_stage,
    )
    closed_s: list[float] = []
    write = swarm.steps.write

    def closed(**record):
        write(**record)
        closed_s.append(asyncio.get_running_loop().time())
        if len(closed_s) == 1:
            swarm.network.freeze("stage1-0")
            asyncio.get_running_loop().call_later(
                FROZEN_S, swarm.network.thaw, "stage1-0"
            )

    swarm.steps.write = closed
    totals = run_virtual(swarm.run())
    assert totals.steps == config.steps and totals.microbatches.exact
    return closed_s, 3 * config.tuning.heartbeat_s


def longest_step_s(closed_s):
    return max(later - earlier for earlier, later in pairwise(closed_s))


def test_a_frozen_peer_holds_up_one_step_and_no_more():
    (frozen_s, *closed_s), silent_s = train_with_a_freeze([1, 2])
    # Those who send to it and the leader find out at the same time.
    assert closed_s[0] - frozen_s < silent_s + 0.7
    assert longest_step_s(closed_s) < 1


def test_the_last_peer_of_a_stage_is_found_again_when_it_wakes():
    (frozen_s, *closed_s), _ = train_with_a_freeze([1, 1])
    assert FROZEN_S < closed_s[0] - frozen_s < FROZEN_S + 8
    assert longest_step_s(closed_s) < 1


class Calls:
    """One peer says at once that the round is void; the other never answers."""

    async def call(self, peer, message, *, timeout_s):
        if peer == "quick":
            return Message({"status": Status.VOID, "lacked": ["slow"]})
        await asyncio.sleep(timeout_s)


def test_what_is_void_for_one_is_not_waited_for():
    config = modelled_config(num_stages=2, steps=1)

    async def main():
        leadership = Leadership(config, Calls(), "trainer", 1)
        request = Collect(round=leadership.round)
        replies = await leadership.ask_together(
            {"quick": request, "slow": request}, timeout_s=1000.0
        )
        return replies, asyncio.get_running_loop().time()

    replies, took_s = run_virtual(main())
    assert replies["quick"]["lacked"] == ["slow"] and replies["slow"] == VOID
    assert took_s == config.tuning.control_timeout_s
