"""Real processes over real hivemind train the same model as one process does.

Tolerances: losses to 1e-5 relative. Parameters to 2e-4 of the largest value of their
array: the swarm adds up float32 gradients in another order, and Adam's first steps turn
a relative error of a small gradient into the same relative error of a whole update.
"""

import signal

import numpy as np
import pytest

LOSS_TOLERANCE = 1e-5
PARAMETER_TOLERANCE = 2e-4


def load(path):
    with np.load(path) as file:
        return dict(file)


def start_servers(swarm, peers_per_stage=2, arguments_of=None):
    """Starts 3 stages; each server saves its parameters in the end."""
    servers = {}
    for stage in range(3):
        for replica in range(peers_per_stage):
            name = f"stage{stage}-{replica}"
            extra = (arguments_of or {}).get(name, [])
            save = ["--save_parameters", str(swarm.workdir / f"{name}.npz")]
            servers[name] = swarm.start_server(stage, name, *save, *extra)
    swarm.wait_for(servers)
    return servers


def check_equal(swarm, names):
    """The swarm's losses and the parameters of the named servers are the single's."""
    single = [r for r in read(swarm.workdir / "single" / "metrics" / "trainer.jsonl")]
    ours = swarm.records("trainer")
    assert len(ours) == len(single)
    for a, b in zip(ours, single, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=LOSS_TOLERANCE)
        norm = b["gradient_norm"]
        assert a["gradient_norm"] == pytest.approx(norm, rel=10 * LOSS_TOLERANCE)
    last = single[-1]["validation_loss"]
    assert ours[-1]["validation_loss"] == pytest.approx(last, rel=LOSS_TOLERANCE)
    check_equal_parameters(swarm, names)


def check_equal_parameters(swarm, names):
    reference = load(swarm.workdir / "single.npz")
    compared = set()
    for name in names:
        for key, array in load(swarm.workdir / f"{name}.npz").items():
            error = np.max(np.abs(array - reference[key]))
            scale = np.max(np.abs(reference[key]))
            assert error <= PARAMETER_TOLERANCE * scale, (name, key, error / scale)
            compared.add(key)
    assert compared == reference.keys()


def read(path):
    from swarm_jax.metrics import read_records

    return read_records(path)


def check_replicas(swarm, names):
    """Replicas of a stage have bit for bit the same parameters."""
    by_stage = {}
    for name in names:
        by_stage.setdefault(name[:6], []).append(load(swarm.workdir / f"{name}.npz"))
    for replicas in by_stage.values():
        for replica in replicas[1:]:
            for key, array in replica.items():
                assert array.tobytes() == replicas[0][key].tobytes(), key


def check_lineages(swarm, names):
    """Replicas were equal after every step, not only after the last one."""
    chains = {}
    for name in names:
        for record in swarm.records(name):
            key = record["stage"], record["step"]
            chains.setdefault(key, set()).add(record["lineage"])
    assert chains and all(len(lineages) == 1 for lineages in chains.values())


def check_exact(swarm):
    for record in swarm.records("trainer"):
        assert record["microbatches_counted_once"] == record["microbatches_expected"]
        assert record["microbatches_lost"] == record["microbatches_counted_twice"] == 0
    assert swarm.summary()["microbatches_counted_once"] == 6 * 8


def check_all(swarm, names):
    swarm.finish(
        swarm.train_single("--save_parameters", str(swarm.workdir / "single.npz"))
    )
    check_exact(swarm)
    check_equal(swarm, names)
    check_replicas(swarm, names)
    check_lineages(swarm, names)


@pytest.mark.integration
def test_three_stages_of_two_peers(swarm):
    swarm.start_bootstrap()
    names = start_servers(swarm).keys()
    swarm.finish(swarm.start_trainer())
    check_all(swarm, names)


@pytest.mark.integration
def test_a_peer_killed_in_the_middle_of_a_step(swarm):
    swarm.start_bootstrap()
    victim = {"stage1-0": ["--signal_at", "KILL:3:1"]}
    servers = start_servers(swarm, arguments_of=victim)
    swarm.finish(swarm.start_trainer())
    assert servers["stage1-0"].exit_code == -9
    check_all(swarm, [name for name in servers if name != "stage1-0"])


@pytest.mark.integration
def test_a_peer_that_is_told_to_leave_goes_with_code_0_and_nothing_runs_again(swarm):
    swarm.start_bootstrap()
    leaver = {"stage1-0": ["--signal_at", "TERM:3:1"]}
    servers = start_servers(swarm, arguments_of=leaver)
    swarm.finish(swarm.start_trainer())
    swarm.finish(servers["stage1-0"])
    assert "has taken over" in servers["stage1-0"].log.read_text()
    assert swarm.summary()["microbatches_answered"] == 6 * 8
    check_all(swarm, [name for name in servers if name != "stage1-0"])


@pytest.mark.integration
def test_a_frozen_peer_is_left_and_wakes_without_harm(swarm):
    swarm.start_bootstrap()
    frozen = {"stage1-0": ["--signal_at", "STOP:2:1"]}
    servers = start_servers(swarm, arguments_of=frozen)
    trainer = swarm.start_trainer()
    swarm.wait_for_steps(4, trainer)
    servers["stage1-0"].popen.send_signal(signal.SIGCONT)
    swarm.finish(trainer)
    check_all(swarm, [name for name in servers if name != "stage1-0"])


@pytest.mark.integration
def test_another_trainer_takes_over_and_a_late_peer_joins(swarm):
    swarm.start_bootstrap()
    ready = str(swarm.workdir / "leaver.ready.json")
    leaver = swarm.start_trainer("--ready_file", ready, name="leaver")
    swarm.wait_for({"leaver": leaver})
    leaver.popen.terminate()
    swarm.finish(leaver)
    servers = start_servers(swarm, peers_per_stage=1)
    first = swarm.start_trainer(name="first")
    swarm.wait_for_steps(2, first, "first")
    first.popen.kill()
    first.popen.wait()
    closed = [record["step"] for record in swarm.records("first")]
    save = ["--save_parameters", str(swarm.workdir / "late.npz")]
    servers["late"] = swarm.start_server(1, "late", *save)
    swarm.wait_for({"late": servers["late"]})
    swarm.finish(swarm.start_trainer())
    swarm.finish(
        swarm.train_single("--save_parameters", str(swarm.workdir / "single.npz"))
    )
    steps = [record["step"] for record in swarm.records("trainer")]
    assert steps == list(range(steps[0], 9)) and steps[0] <= closed[-1] + 2
    check_equal_parameters(swarm, servers)
