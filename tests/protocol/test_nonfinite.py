"""Non-finite values: retry elsewhere, then it is the model's fault (section 4)."""

import pytest

from swarm_jax.core.reports import CommitRecord, Report
from swarm_jax.errors import PeerLost
from swarm_jax.roles import stage_control
from swarm_jax.roles.compute import Forward
from swarm_jax.roles.messages import Status
from swarm_jax.roles.relay import ModelDiverged, NextStage

TRYING = "failed, trying another"


def break_devices(run, *peers, indices=(3,)):
    """These microbatches of step 1 give non-finite values there."""
    bad = {run.swarm.data.microbatch(1, i).inputs.tobytes() for i in indices}
    for peer in peers:
        compute = run.swarm.computes[peer]
        compute.forward = _spoil(compute.forward, bad)


def _spoil(forward, bad):
    async def spoilt(x, **options):
        if x[0].tobytes() in bad:
            return Forward([], None, False, 0.0)
        return await forward(x, **options)

    return spoilt


def test_non_finite_values_are_tried_on_a_second_peer(rule, play):
    """The device of stage0-0 gives them all through a step, that of stage0-1 does not.

    Off: the model is blamed at once, and the run stops.
    """
    status = NextStage._status

    def blames_the_model(stage, peer, relay, header, nonfinite):
        if header.get("status") == Status.NONFINITE:
            raise ModelDiverged(relay.id, stage.stage, [peer])
        return status(stage, peer, relay, header, nonfinite)

    rule.off(NextStage, "_status", blames_the_model)

    async def one_is_broken(run):
        break_devices(run, "stage0-0", indices=range(8))

    outcome = play([2, 1], one_is_broken)
    assert outcome.verdict == rule.gives("right", off="Diverged")


def test_what_a_second_peer_gets_is_the_models_fault(rule, play, caplog):
    """Both devices of stage 0 give non-finite values for one microbatch.

    Off: peers are banned for it, and the step is tried for ever.
    """
    status = NextStage._status

    def blames_the_peer(stage, peer, relay, header, nonfinite):
        if header.get("status") == Status.NONFINITE:
            raise PeerLost(peer, "non-finite values")
        return status(stage, peer, relay, header, nonfinite)

    rule.off(NextStage, "_status", blames_the_peer)

    async def both_are_broken(run):
        break_devices(run, "stage0-0", "stage0-1")

    outcome = play([2, 1], both_are_broken, deadline_s=20.0)
    assert outcome.verdict == rule.gives("Diverged", off="not finished")
    assert (TRYING in caplog.text) == (not rule.is_on)


@pytest.mark.parametrize(
    ("reported", "verdict"),
    [({}, "right"), ({"last_commit": CommitRecord(1, 0.0)}, "not finished")],
)
def test_a_skipped_step_is_skipped_by_all_stages(play, monkeypatch, reported, verdict):
    """Step 1 diverges; the leader dies when only stage 0 has heard that it is skipped.

    Off: the record does not say so, and the next leader looks for a gradient for stage
    1 that nobody has.
    """

    def report(**said):
        record = said["last_commit"]
        is_skip = record is not None and record.gradient_norm is None
        return Report(**said | (reported if is_skip else {}))

    monkeypatch.setattr(stage_control, "Report", report)

    async def the_leader_dies(run):
        break_devices(run, "stage0-0", "stage0-1")
        await run.happens("request_sent", "commit", "trainer-a", step=1)
        run.cut("trainer-a", "stage1-0")
        await run.until(lambda: run.state("stage0-0").step == 2)
        run.kill_trainer()
        run.start_trainer("trainer-b")

    skip = {"on_nonfinite": "skip_step", "skipped": 1}
    outcome = play([2, 1], the_leader_dies, deadline_s=30.0, **skip)
    assert outcome.verdict == verdict
