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


PLACES = "stage0-0", "stage1-0", "stage1-1", "stage2-0"
"""Servers of the swarm without shared storage, each with a folder of its own."""


def start_places(swarm, generation, signal_at=()):
    for place in PLACES:
        swarm.start_server(
            f"{place}{generation}",
            *("--checkpoint_dir", str(swarm.workdir / place)),
            *(signal_at if place == "stage2-0" else ()),
        )
    for place in PLACES:
        swarm.address_of(f"{place}{generation}")


def run_until_lost(swarm, event):
    """The last stage's only peer dies at its part of a checkpoint, the second or so.

    Returns:
        The steps of the newest checkpoint of the other stages, and of its own.
    """
    swarm.start_bootstrap()
    start_places(swarm, "a", ("--signal_at", f"KILL:{event}:{2 * SAVED}+:1"))
    trainer = swarm.start_trainer("trainer")
    swarm.finish(swarm.servers["stage2-0a"], -signal.SIGKILL)

    def newest():
        return [max(swarm.checkpoints_in(swarm.workdir / place)) for place in PLACES]

    swarm.wait_until(lambda: min(newest()[:-1]) >= 2 * SAVED, trainer)
    swarm.kill_all()
    swarm.start_bootstrap()
    *others, own = newest()
    assert len(set(others)) == 1
    return others[0], own


def check_last_records(swarm, single):
    """Steps that were taken again have two records; the later ones count."""
    last = {record["step"]: record for record in swarm.closed()}
    oracle.check_records([record for _, record in sorted(last.items())], single)
    oracle.check_parameters(swarm, single, [f"{place}b" for place in PLACES])


@pytest.mark.chaos
def test_without_shared_storage_each_server_brings_its_own_state_back(swarm, single):
    saved, own = run_until_lost(swarm, "gave-complete")
    assert saved == own
    start_places(swarm, "b")
    swarm.finish(swarm.start_trainer("another"))
    assert swarm.records("another")[0]["step"] == saved + 1
    check_last_records(swarm, single)


@pytest.mark.chaos
def test_what_one_stage_has_not_saved_is_asked_for_and_then_trained_again(
    swarm, single
):
    """It died before it knew that the step was complete, and its disk lacks it."""
    swarm.experiment += ["--config.tuning.lost_stage_s=1.0"]
    saved, own = run_until_lost(swarm, "asked-complete")
    assert own < saved
    start_places(swarm, "b")
    waiting = swarm.start_trainer("waiting")
    offer = f"then the run goes on from the checkpoint of step {own}\n"
    swarm.wait_until(lambda: offer in waiting.log.read_text(), waiting)
    assert (
        f"stage 2: no peer with the state of step {saved} " in waiting.log.read_text()
    )
    waiting.popen.terminate()
    swarm.finish(waiting)
    swarm.finish(swarm.start_trainer("another", "--restart_if_lost"))
    assert swarm.records("another")[0]["step"] == own + 1
    check_last_records(swarm, single)
