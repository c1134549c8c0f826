"""Real processes over real hivemind train what one process does, whoever dies.

One death per role. All signals for all roles: ``test_signals.py`` (``make chaos``).
"""

import signal

import pytest

from tests.integration import oracle

pytestmark = pytest.mark.integration


def test_a_peer_of_each_stage_the_trainer_and_a_donor_are_killed(swarm, single):
    """In the middle of a microbatch, of a close, of a download.

    The trainer dies at step 4: so the joiner's download is over before the next step.
    """
    victims = {
        "stage0-0": "KILL:counted:1+:1",
        "stage1-0": "KILL:gave-prepare:2:1",
        "stage2-0": "KILL:asked-commit:3:1",
        "stage1-1": "KILL:gave-chunk:*:1",
    }
    swarm.start_bootstrap()
    swarm.start_servers([2, 3, 2], victims)
    trainer = swarm.start_trainer("trainer", "--signal_at", "KILL:got-relay:4:2")
    swarm.finish(trainer, -signal.SIGKILL)
    swarm.start_server("stage1-late")
    swarm.finish(swarm.servers["stage1-1"], -signal.SIGKILL)
    swarm.finish(swarm.start_trainer("another"))
    for victim in victims:
        assert swarm.servers[victim].exit_code == -signal.SIGKILL
    oracle.check(swarm, single, swarm.servers.keys() - victims)


def test_one_peer_leaves_and_another_freezes_and_nothing_runs_again(swarm, single):
    leaver, sleeper = "stage1-0", "stage2-1"
    swarm.start_bootstrap()
    swarm.start_servers(
        [2, 2, 2], {leaver: "TERM:counted:0:1", sleeper: "STOP:counted:1+:1"}
    )
    trainer = swarm.start_trainer()
    swarm.wait_for_stop(swarm.servers[sleeper])
    swarm.wait_for_step(4, trainer)
    swarm.servers[sleeper].popen.send_signal(signal.SIGCONT)
    swarm.finish(trainer)
    evaluation = swarm.evaluate()
    assert evaluation["step"] == 8
    assert evaluation["sets"]["held_out"]["loss"] == pytest.approx(
        swarm.summary()["validation_loss"], rel=1e-6
    )
    assert "has taken over" in swarm.finish(swarm.servers[leaver])
    assert swarm.summary()["microbatches_answered"] == 6 * 8
    oracle.check(swarm, single, swarm.servers.keys() - {leaver, sleeper})
