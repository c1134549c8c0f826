"""Swarms of real processes over loopback, started as a user starts them by hand."""

import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from swarm_jax.launcher.environment import process_environment
from swarm_jax.launcher.processes import Processes, module_command, wait_ready
from swarm_jax.metrics import read_records

START_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 400.0

CONFIG = '''
"""A model so small that starting processes takes longer than training it."""

from models.config import GPTConfig
from swarm_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = ExperimentConfig(
        run_id="integration",
        seed=5,
        steps=8,
        model=GPTConfig(
            num_layers=3, model_dim=32, num_heads=2, ffn_dim=64, sequence_length=32
        ),
    )
    config.data.max_corpus_bytes = 400_000
    config.data.target_batch_size = 12
    config.optimizer.warmup_steps = 2
    config.swarm.microbatch_size = 2
    config.validation.sequences = 8
    return config
'''


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    """Corpora and compiled programs, shared by all tests of this worker."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def config_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("configs") / "integration.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def swarm(tmp_path, cache_dir, config_file):
    """A swarm to start; the test fails if any process of it is left behind."""
    before = {p.pid for p in psutil.process_iter()}
    with Processes(tmp_path / "logs") as processes:
        yield SwarmByHand(tmp_path, cache_dir, config_file, processes)
    left = [
        process
        for process in psutil.process_iter(["pid", "cmdline", "status"])
        if process.pid not in before
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and _is_ours(process, tmp_path)
    ]
    assert not left, f"left behind: {left}"


def _is_ours(process: psutil.Process, workdir: Path) -> bool:
    command = " ".join(process.info["cmdline"] or [])
    is_orphan_p2pd = "p2pd" in command and process.ppid() in (0, 1)
    return str(workdir) in command or is_orphan_p2pd


class SwarmByHand:
    """Bootstrap, stage servers and trainer, one command each."""

    def __init__(self, workdir, cache_dir, config_file, processes):
        self.workdir = workdir
        self.experiment = ["--config", config_file]
        self._cache_dir = cache_dir
        self._processes = processes
        self._environment = process_environment(cache_dir)
        self._peers = []

    def start_bootstrap(self):
        ready = self.workdir / "bootstrap.json"
        arguments = [
            *self.experiment,
            *("--host_maddrs", "/ip4/127.0.0.1/tcp/0", "--ready_file", str(ready)),
        ]
        child = self._start("bootstrap", "scripts.run_dht", arguments)
        self._peers = wait_ready(child, ready, START_TIMEOUT_S)["initial_peers"]
        return child

    def start_server(self, stage: int, name: str, *arguments: str):
        worker = [*self._worker(name), "--stage", str(stage), *arguments]
        worker += ["--ready_file", str(self._ready_file(name))]
        return self._start(name, "scripts.run_server", worker)

    def wait_for(self, servers):
        """Waits until all can be reached, so that they take part from step 0."""
        for name, child in servers.items():
            wait_ready(child, self._ready_file(name), START_TIMEOUT_S)

    def _ready_file(self, name: str) -> Path:
        return self.workdir / f"{name}.ready.json"

    def start_trainer(self, *arguments: str, name: str = "trainer"):
        worker = [*self._worker(name), *arguments]
        worker += ["--cache_dir", str(self._cache_dir)]
        return self._start(name, "scripts.run_trainer", worker)

    def wait_for_steps(self, steps: int, trainer, name: str = "trainer"):
        """Waits until a running trainer has closed so many steps."""
        deadline_s = time.monotonic() + RUN_TIMEOUT_S
        while len(self.records(name)) < steps:
            assert trainer.exit_code is None, trainer.obituary()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)

    def train_single(self, *arguments: str):
        workdir = self.workdir / "single"
        command = [*self.experiment, "--workdir", str(workdir), *arguments]
        command += ["--cache_dir", str(self._cache_dir)]
        child = self._processes.start(
            "single",
            [sys.executable, "-m", "scripts.train_single", *command],
            self._environment,
        )
        return child

    def finish(self, child) -> str:
        """Waits for the process; returns its log."""
        code = child.popen.wait(RUN_TIMEOUT_S)
        assert code == 0, child.obituary()
        return child.log.read_text()

    def records(self, name: str):
        path = self.workdir / "metrics" / f"{name}.jsonl"
        return list(read_records(path)) if path.exists() else []

    def summary(self):
        return json.loads((self.workdir / "summary.json").read_text())

    def _start(self, name: str, module: str, arguments: list[str]):
        command = module_command(module, arguments)
        return self._processes.start(name, command, self._environment)

    def _worker(self, name: str) -> list[str]:
        return [
            *self.experiment,
            *("--initial_peers", *self._peers),
            *("--host_maddrs", "/ip4/127.0.0.1/tcp/0"),
            *("--workdir", str(self.workdir), "--name", name),
        ]
