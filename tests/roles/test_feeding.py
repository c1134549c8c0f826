"""How many microbatches a trainer keeps in the swarm, on virtual time."""

import itertools
import statistics

from swarm_jax.core import pace
from swarm_jax.net.local import LocalNetwork
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.modelled import (
    DURATIONS_S,
    ModelledCompute,
    ModelledTokens,
    modelled_config,
)
from swarm_jax.sim.swarm import SimulatedSwarm

LATENCY_S = 0.05


def play(*, window: str, limit: int) -> tuple[float, int]:
    """Trains one peer per stage over slow links.

    Returns:
        Seconds of the last step, and the most microbatches that stage 0 held in it.
    """
    config = modelled_config(num_stages=3, steps=7, microbatches=128)
    config.tuning.window = window
    config.tuning.microbatches_in_flight = config.tuning.max_queue = limit
    held = []

    async def main():
        network = LocalNetwork(
            heartbeat_s=config.tuning.heartbeat_s, latency_s=lambda a, b: LATENCY_S
        )
        swarm = SimulatedSwarm(
            config,
            data=ModelledTokens(config),
            make_compute=lambda stage: ModelledCompute(config, stage),
            peers_per_stage=[1, 1, 1],
            network=network,
        )

        def listen(event):
            if event.kind == "request_arrived" and event.op == "relay":
                server = swarm.servers["stage0-0"]
                if server.state.step == config.steps - 1:
                    held.append(len(server._relaying))

        network.wires.listeners.append(listen)
        await swarm.run()
        return swarm.steps[-1]["step_s"]

    return run_virtual(main()), max(held)


def test_an_automatic_window_is_as_fast_as_a_large_one_and_holds_less():
    large_s, held = play(window="fixed", limit=60)
    found_s, found = play(window="auto", limit=60)
    assert held == 60
    assert found_s < 1.15 * large_s
    assert found <= 32


def train(*, slowness: float) -> tuple[float, int]:
    """Trains two stages of four peers; one peer is slower than the others.

    Returns:
        Seconds of a step, and how many rounds there were.
    """
    config = modelled_config(num_stages=2, steps=8, microbatches=128)
    config.tuning.microbatches_in_flight = config.tuning.max_queue = 24
    numbers, rounds = itertools.count(), []

    def make_compute(stage):
        factor = slowness if next(numbers) == 1 else 1.0
        return ModelledCompute(
            config, stage, lambda name: factor * DURATIONS_S.get(name, 0.002)
        )

    async def main():
        swarm = SimulatedSwarm(
            config,
            data=ModelledTokens(config),
            make_compute=make_compute,
            peers_per_stage=[4, 4],
            network=LocalNetwork(
                heartbeat_s=config.tuning.heartbeat_s, latency_s=lambda a, b: 0.02
            ),
        )

        def listen(event):
            if event.kind == "request_arrived" and event.op == "collect":
                rounds.append(event.peer == "stage0-0")

        swarm.network.wires.listeners.append(listen)
        totals = await swarm.run()
        assert totals.microbatches.exact
        return statistics.mean(record["step_s"] for record in swarm.steps[2:])

    return run_virtual(main()), sum(rounds)


def test_a_step_does_not_wait_for_the_last_work_of_a_slow_peer(monkeypatch):
    quick_s, _ = train(slowness=20.0)
    monkeypatch.setattr(pace, "LATE", 1e9)
    patient_s, _ = train(slowness=20.0)
    assert quick_s < 0.75 * patient_s


def test_equal_peers_are_waited_for(monkeypatch):
    _, rounds = train(slowness=1.0)
    monkeypatch.setattr(pace, "LATE", 1e9)
    assert train(slowness=1.0)[1] == rounds
