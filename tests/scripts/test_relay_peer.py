"""hivemind.moe behind the benchmark: it answers, and nothing of it is left."""

import json
import os
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from swarm_jax.launcher.processes import Processes, module_command, wait_ready

TOY = [
    "--config.model.num_layers=2",
    "--config.model.model_dim=16",
    "--config.model.num_heads=2",
    "--config.model.ffn_dim=32",
    "--config.model.sequence_length=8",
]
PEER = ["--config", "configs/relay.py", *TOY, "--device", "cpu"]
DEADLINE_S = 120.0


def alive(processes):
    return [p for p in processes if p.is_running() and p.status() != "zombie"]


@pytest.fixture
def environment():
    """With a folder that is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        yield {"OMP_NUM_THREADS": "1", "TMPDIR": temporary}


@pytest.fixture
def servers(tmp_path, environment):
    """A server for each stage, and their ready files."""
    with Processes(tmp_path) as processes:
        ready = [tmp_path / f"stage{stage}.json" for stage in range(2)]
        children = [
            processes.start(
                f"stage{stage}",
                module_command(
                    "scripts.relay_peer",
                    [*PEER, "--serve", str(stage), "--ready_file", str(file)],
                ),
                environment,
            )
            for stage, file in enumerate(ready)
        ]
        for child, file in zip(children, ready, strict=True):
            wait_ready(child, file, DEADLINE_S)
        yield children, ready


def test_clients_measure_its_speed_and_it_ends_however_it_is_killed(
    servers, environment, tmp_path
):
    children, ready = servers
    result = tmp_path / "speed.json"
    clients = [*PEER, "--clients", "2", "--seconds", "3", "--json", str(result)]
    with Processes(tmp_path) as processes:
        child = processes.start(
            "clients",
            module_command(
                "scripts.relay_peer", [*clients, "--servers", *map(str, ready)]
            ),
            environment,
        )
        assert child.popen.wait(DEADLINE_S) == 0, child.obituary()
    assert json.loads(result.read_text())["tokens_per_s"] > 0
    family = [
        process
        for child in children
        for process in psutil.Process(child.popen.pid).children(recursive=True)
    ]
    assert len(family) > len(children)
    assert list(Path(environment["TMPDIR"]).glob("p2pd-*.sock"))
    for child in children:
        os.kill(child.popen.pid, signal.SIGKILL)
        child.popen.wait()
    give_up_s = time.monotonic() + 20
    while alive(family):
        assert time.monotonic() < give_up_s, alive(family)
        time.sleep(0.05)
