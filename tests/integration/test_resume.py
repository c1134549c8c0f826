"""A run whose processes are all killed goes on from its checkpoint, as if nothing was.

One way in the default tests, the others by ``make chaos``.
"""

import signal

import pytest

from tests.integration import oracle

STEPS = 16
SAVED = 3
"""The first checkpoint; a new one after every so many steps."""


@pytest.fixture(scope="module")
def steps():
    return STEPS


@pytest.fixture(autouse=True)
def often_saved(swarm):
    swarm.experiment += [f"--config.checkpoint.every_steps={SAVED}"]


def wait_for_checkpoint(swarm, launcher, step):
    """Until one of this step or later is complete, and a step has followed it."""

    def is_there():
        saved = max(swarm.checkpoints(), default=0)
        return saved >= step and swarm.closed()[-1]["step"] > saved

    swarm.wait_until(is_there, launcher)


def kill_after(swarm, launcher, step):
    wait_for_checkpoint(swarm, launcher, step)
    swarm.kill_launcher(launcher)


def check_whole_run(swarm, single):
    """Steps, losses and parameters of the control; a summary of all parts."""
    oracle.check_steps(swarm, single)
    oracle.check_checkpoint(swarm, single)
    summary = swarm.summary()
    assert summary["steps"] == STEPS
    assert summary["microbatches_counted_once"] == 6 * STEPS
    assert summary["microbatches_expected"] == 6 * STEPS
    assert summary["microbatches_lost"] == summary["steps_without_record"] == 0


@pytest.mark.integration
def test_the_same_command_goes_on_when_the_launcher_was_killed(swarm, single):
    command = "--peers-per-stage", "1"
    kill_after(swarm, swarm.launch("launch-1", *command), SAVED)
    output = swarm.finish(swarm.launch("launch-2", *command))
    assert f"{swarm.workdir} goes on from its checkpoint of step " in output
    check_whole_run(swarm, single)


@pytest.mark.chaos
def test_again_and_again_with_other_stages_and_peers(swarm, single):
    kill_after(swarm, swarm.launch("launch-1"), SAVED)
    two_stages = "--config.swarm.num_stages=2"
    kill_after(swarm, swarm.launch("launch-2", two_stages), 2 * SAVED)
    one_stage = "--config.swarm.num_stages=1"
    output = swarm.finish(swarm.launch("launch-3", one_stage))
    assert "goes on from its checkpoint of step" in output
    check_whole_run(swarm, single)


@pytest.mark.chaos
def test_ctrl_c_and_the_same_command(swarm, single):
    launcher = swarm.launch("launch-1")
    wait_for_checkpoint(swarm, launcher, SAVED)
    launcher.popen.send_signal(signal.SIGINT)
    swarm.finish(launcher, 128 + signal.SIGINT)
    swarm.finish(swarm.launch("launch-2"))
    check_whole_run(swarm, single)
