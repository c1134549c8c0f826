"""What a peer that leaves hands over (design, section 6)."""

import pytest

from swarm_jax.roles.changes import Changes


async def with_counting_going_on(changes, change):
    return await changes.read(change)


def test_a_hand_over_is_of_what_its_ledger_says(rule, play):
    """stage0-0 leaves while its device adds a gradient, and gives up waiting for it.

    The trainer stands still meanwhile, or its next round would forbid the hand-over.
    Off: the sum that it hands over holds a gradient that its ledger lacks.
    """
    rule.off(Changes, "run", with_counting_going_on)

    async def leave(run):
        server = run.swarm.servers["stage0-0"]
        await run.until(lambda: server.state.step == 1 and server.state.ledger.counted)
        run.slow_s["stage0-0", "backward"] = 8.0
        await run.until(lambda: server.state.settling)
        run.network.freeze("trainer-a")
        assert await server.drain(12.0)
        run.network.thaw("trainer-a")
        await server.leave()
        run.kill("stage0-0")

    outcome = play([2, 1], leave)
    assert outcome.verdict == rule.gives("right", off="wrong parameters")


@pytest.mark.parametrize("every_steps", [1, 0])
def test_a_validation_that_is_due_does_not_end_a_replay(play, every_steps):
    """V, and the step that stage 0 has committed is to be validated."""

    async def lose(run):
        run.config.validation.every_steps = every_steps
        await run.until(lambda: run.state("stage1-1").step == 1)
        run.network.freeze("stage1-1")
        await run.happens("request_sent", "commit", "trainer-a", step=1)
        run.cut("trainer-a", "stage1-0")
        await run.until(lambda: run.state("stage0-0").step == 2)
        run.kill("stage1-0")
        run.network.thaw("stage1-1")

    outcome = play([1, 2], lose)
    assert outcome.verdict == "right"
    assert set(outcome.states) == {"stage0-0", "stage1-1"}
