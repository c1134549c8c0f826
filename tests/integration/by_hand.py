"""Starts and watches the processes of a swarm, one command each."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from swarm_jax.launcher.environment import process_environment
from swarm_jax.launcher.processes import Child, Processes, module_command, wait_ready
from swarm_jax.metrics import read_records
from swarm_jax.stage.checkpoints import load_params
from swarm_jax.stage.export import flat_layers

START_TIMEOUT_S = 200.0
RUN_TIMEOUT_S = 400.0
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
MARK = "SWARM_JAX_TEST"
"""In the environment of all processes of a swarm, their daemons included."""


class SwarmByHand:
    """Bootstrap, stage servers and trainers.

    Attributes:
        peers: What the next process is told as ``--initial_peers``.
        servers: By name, ``stage1-...``; each saves its parameters after the last step.
        trainers: By name, in the order in which they were started.
        addresses: Options that say where a process listens, by its name.
    """

    def __init__(
        self, workdir: Path, cache_dir: Path, config_file: str, processes: Processes
    ):
        self.workdir = workdir
        self.experiment = ["--config", config_file]
        self.peers: list[str] = []
        self.servers: dict[str, Child] = {}
        self.trainers: dict[str, Child] = {}
        self.addresses = lambda name: ["--host_maddrs", LOOPBACK]
        self._moves = 0
        self._cache_dir = cache_dir
        self._processes = processes
        self._environment = process_environment(cache_dir) | {MARK: str(workdir)}

    def start_bootstrap(self) -> Child:
        ready = self.workdir / "bootstrap.json"
        arguments = [*self.experiment, *self.addresses("bootstrap")]
        arguments += ["--ready_file", str(ready)]
        self.bootstrap = self._start("bootstrap", "scripts.run_dht", arguments)
        found = wait_ready(self.bootstrap, ready, START_TIMEOUT_S)
        self.peers = found["initial_peers"]
        return self.bootstrap

    def start_server(self, name: str, *arguments: str) -> Child:
        """Starts a peer of the stage that its name begins with."""
        worker = [*self._worker(name), "--stage", name[len("stage")]]
        worker += ["--save_parameters", str(self._saved(name))]
        worker += ["--ready_file", str(self._ready(name)), *arguments]
        self.servers[name] = self._start(name, "scripts.run_server", worker)
        return self.servers[name]

    def start_servers(
        self, peers_per_stage: Iterable[int], signal_at: dict[str, str] | None = None
    ) -> None:
        """Starts all, and waits: so that they take part from step 0.

        Args:
            signal_at: ``--signal_at`` of some, by name.
        """
        for stage, peers in enumerate(peers_per_stage):
            for name in (f"stage{stage}-{number}" for number in range(peers)):
                when = (signal_at or {}).get(name)
                self.start_server(name, *(["--signal_at", when] if when else []))
        for name in self.servers:
            self.address_of(name)

    def address_of(self, name: str) -> list[str]:
        """Where a server can be reached; waits until it can be."""
        server = self.servers[name]
        return wait_ready(server, self._ready(name), START_TIMEOUT_S)["initial_peers"]

    def start_trainer(self, name: str = "trainer", *arguments: str) -> Child:
        worker = [*self._worker(name), "--cache_dir", str(self._cache_dir), *arguments]
        self.trainers[name] = self._start(name, "scripts.run_trainer", worker)
        return self.trainers[name]

    def migrate(self, peer: str, stage: int, *arguments: str) -> Child:
        """Starts ``scripts.migrate``."""
        self._moves += 1
        command = [sys.executable, "-m", "scripts.migrate", *self.experiment]
        command += ["--peer", peer, "--stage", str(stage), *arguments]
        command += ["--initial_peers", *self.peers, "--host_maddrs", LOOPBACK]
        name = f"migrate-{self._moves}"
        return self._processes.start(name, command, self._environment)

    def evaluate(self) -> dict[str, Any]:
        """What ``scripts.evaluate`` finds as a guest of the swarm."""
        report = self.workdir / "evaluation.json"
        command = [sys.executable, "-m", "scripts.evaluate", *self.experiment]
        command += ["--initial_peers", *self.peers, "--host_maddrs", LOOPBACK]
        command += ["--cache_dir", str(self._cache_dir), "--json", str(report)]
        self.finish(self._processes.start("evaluate", command, self._environment))
        return json.loads(report.read_text())

    def repartition(self) -> dict[str, Any]:
        """What ``scripts.repartition`` plans for the peers that it finds online."""
        report = self.workdir / "partition.json"
        command = [sys.executable, "-m", "scripts.repartition", *self.experiment]
        command += ["--checkpoint_dir", str(self.workdir / "checkpoints")]
        command += ["--initial_peers", *self.peers, "--host_maddrs", LOOPBACK]
        command += ["--json", str(report)]
        self.finish(self._processes.start("repartition", command, self._environment))
        return json.loads(report.read_text())

    def launch(self, name: str, *arguments: str) -> Child:
        """Starts ``scripts.launch`` in this folder; its trainer is "trainer".

        Args:
            name: Of its log.
        """
        command = [sys.executable, "-m", "scripts.launch", *self.experiment]
        command += ["--workdir", str(self.workdir)]
        command += ["--cache_dir", str(self._cache_dir), *arguments]
        launcher = self._processes.start(name, command, self._environment)
        self.trainers["trainer"] = launcher
        return launcher

    def kill_all(self) -> None:
        """SIGKILL for every process that is still there; the next ones are new."""
        (self.workdir / "bootstrap.json").unlink()
        everyone = [*self.servers.values(), *self.trainers.values(), self.bootstrap]
        for child in everyone:
            if child.exit_code is None:
                child.popen.kill()
                self.finish(child, -signal.SIGKILL)

    def kill_launcher(self, launcher: Child) -> None:
        """SIGKILL, which its children follow."""
        children = psutil.Process(launcher.popen.pid).children(recursive=True)
        launcher.popen.kill()
        self.finish(launcher, -signal.SIGKILL)
        self.wait_until(lambda: not any(map(_is_alive, children)))

    def train_single(self) -> None:
        """Trains the same model in one process."""
        command = [sys.executable, "-m", "scripts.train_single", *self.experiment]
        command += ["--workdir", str(self.workdir)]
        command += ["--cache_dir", str(self._cache_dir)]
        command += ["--save_parameters", str(self._saved("single"))]
        self.finish(self._processes.start("single", command, self._environment))

    def finish(self, child: Child, code: int = 0) -> str:
        """Waits for the process; returns its log."""
        child.popen.wait(RUN_TIMEOUT_S)
        assert child.exit_code == code, child.obituary()
        return child.log.read_text()

    def wait_until(self, condition: Callable[[], object], *alive: Child) -> None:
        """Waits for what other processes do, so long as some of them are alive."""
        deadline_s = time.monotonic() + RUN_TIMEOUT_S
        while not condition():
            for child in alive:
                assert child.exit_code is None, child.obituary()
            assert time.monotonic() < deadline_s, self._last_words()
            time.sleep(0.02)

    def wait_for_step(self, step: int, *alive: Child) -> None:
        """Waits until a trainer has closed ``step`` (from 0)."""
        self.wait_until(lambda: step + 1 in [r["step"] for r in self.closed()], *alive)

    def wait_for_stop(self, child: Child) -> None:
        """Waits until SIGSTOP has reached it."""
        process = psutil.Process(child.popen.pid)
        self.wait_until(lambda: process.status() == psutil.STATUS_STOPPED, child)

    def closed(self) -> list[dict]:
        """Records of all steps that any trainer has closed."""
        return [record for name in self.trainers for record in self.records(name)]

    def records(self, name: str) -> list[dict]:
        path = self.workdir / "metrics" / f"{name}.jsonl"
        return list(read_records(path)) if path.exists() else []

    def summary(self) -> dict:
        return json.loads((self.workdir / "summary.json").read_text())

    def parameters(self, name: str) -> dict[str, np.ndarray]:
        """What a process has saved at its end; waits until it has."""
        self.wait_until(self._saved(name).exists)
        with np.load(self._saved(name)) as file:
            return dict(file)

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints that are complete."""
        return self.checkpoints_in(self.workdir / "checkpoints")

    def checkpoints_in(self, folder: Path) -> list[int]:
        markers = folder.glob("step_*/complete.json")
        return [int(marker.parent.name.removeprefix("step_")) for marker in markers]

    def checkpoint(self) -> dict[str, np.ndarray]:
        """Parameters of the newest checkpoint of all stages, named as in ``single``."""
        layers, _ = load_params(self.workdir / "checkpoints")
        return flat_layers(layers)

    def _last_words(self) -> str:
        """Of all, since who waits in vain waits for one whom others let wait."""
        everyone = [*self.servers.values(), *self.trainers.values()]
        return "\n".join(["it did not happen", *(c.obituary() for c in everyone)])

    def _saved(self, name: str) -> Path:
        return self.workdir / f"{name}.npz"

    def _ready(self, name: str) -> Path:
        return self.workdir / f"{name}.ready.json"

    def _start(self, name: str, module: str, arguments: list[str]) -> Child:
        command = module_command(module, arguments)
        return self._processes.start(name, command, self._environment)

    def _worker(self, name: str) -> list[str]:
        return [
            *self.experiment,
            *("--initial_peers", *self.peers),
            *self.addresses(name),
            *("--workdir", str(self.workdir), "--name", name),
        ]


def _is_alive(process: psutil.Process) -> bool:
    """A zombie that nobody reaps in a container is gone."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
