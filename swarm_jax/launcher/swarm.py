"""One run on one machine: a bootstrap, stage servers and a trainer, until its end."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from swarm_jax.errors import ConfigError
from swarm_jax.launcher.environment import peer_environments, process_environment
from swarm_jax.launcher.flags import EXIT_BAD_INPUT
from swarm_jax.launcher.processes import (
    Child,
    ProcessDied,
    Processes,
    describe_exit,
    module_command,
    tail,
    wait_ready,
)
from swarm_jax.launcher.progress import Display, RunView
from swarm_jax.launcher.summary import finish_summary, summary_table
from swarm_jax.metrics import make_workdir

LOOPBACK = ("--host_maddrs", "/ip4/127.0.0.1/tcp/0")
BOOTSTRAP_FILE = "bootstrap.json"
BOOTSTRAP_TIMEOUT_S = 120.0
REFRESH_S = 0.2

RUN_FILES = (
    *("metrics/*.jsonl", "tensorboard/*", "logs/*.log", "compare.png"),
    *("summary.json", "config.json", BOOTSTRAP_FILE),
)
"""What a run writes into its folder, and all that ``--overwrite`` removes from it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSwarm:
    """What to start.

    Attributes:
        experiment: Arguments that name the experiment: ``--config FILE ...``.
        num_stages, steps: Of that experiment.
        workdir: Run folder.
        cache_dir: Corpora and compiled programs, kept between runs.
        peers_per_stage: Stage servers of each stage.
        device: Key of ``flags.PLATFORMS``.
        tensorboard: Write the steps' figures for TensorBoard too.
    """

    experiment: Sequence[str]
    num_stages: int
    steps: int
    workdir: Path
    cache_dir: Path
    peers_per_stage: int = 2
    device: str = "cpu"
    tensorboard: bool = False

    def run(self, console: Console) -> None:
        """Trains to the end, then prints the summary. Leaves no process behind.

        Raises:
            ProcessDied: The bootstrap or the trainer ended before the run did, or a
                stage server could not start for a reason that its user can mend.
        """
        started_s = time.monotonic()
        _exit_on(signal.SIGTERM, signal.SIGHUP)
        with Processes(self.workdir / "logs") as processes:
            bootstrap, initial_peers = self._start_bootstrap(processes)
            servers = self._start_servers(processes, initial_peers)
            trainer = self._start_trainer(processes, initial_peers)
            self._watch(bootstrap, servers, trainer, console)
        if not (self.workdir / "summary.json").exists():
            raise ProcessDied(f"No summary was written.\n{trainer.obituary()}")
        summary = finish_summary(self.workdir, time.monotonic() - started_s)
        console.print(summary_table(summary, self.workdir))

    def _start_bootstrap(self, processes: Processes) -> tuple[Child, list[str]]:
        ready_file = self.workdir / BOOTSTRAP_FILE
        arguments = [*self.experiment, *LOOPBACK, "--ready_file", str(ready_file)]
        bootstrap = processes.start(
            "bootstrap",
            module_command("scripts.run_dht", arguments),
            process_environment(self.cache_dir),
        )
        ready = wait_ready(bootstrap, ready_file, BOOTSTRAP_TIMEOUT_S)
        return bootstrap, ready["initial_peers"]

    def _start_servers(
        self, processes: Processes, initial_peers: Sequence[str]
    ) -> list[Child]:
        peers = self.num_stages * self.peers_per_stage
        environments = peer_environments(self.device, peers, self.cache_dir)
        servers = []
        for index, environment in enumerate(environments):
            stage, replica = divmod(index, self.peers_per_stage)
            name = f"stage{stage}-{replica}"
            arguments = [
                *self._worker_arguments(name, initial_peers),
                *("--stage", str(stage), "--device", self.device),
            ]
            command = module_command("scripts.run_server", arguments)
            servers.append(processes.start(name, command, environment))
        return servers

    def _start_trainer(
        self, processes: Processes, initial_peers: Sequence[str]
    ) -> Child:
        arguments = [
            *self._worker_arguments("trainer", initial_peers),
            *("--device", "cpu", "--cache_dir", str(self.cache_dir)),
            *(("--tensorboard",) if self.tensorboard else ()),
        ]
        return processes.start(
            "trainer",
            module_command("scripts.run_trainer", arguments),
            process_environment(self.cache_dir),
        )

    def _worker_arguments(self, name: str, initial_peers: Sequence[str]) -> list[str]:
        return [
            *self.experiment,
            *("--initial_peers", *initial_peers),
            *LOOPBACK,
            *("--workdir", str(self.workdir), "--name", name),
        ]

    def _watch(
        self,
        bootstrap: Child,
        servers: Sequence[Child],
        trainer: Child,
        console: Console,
    ) -> None:
        """Shows progress until the trainer has ended well."""
        headline = f"starting {len(servers)} stage servers and a trainer; logs: "
        view = RunView(self.steps, headline + str(self.workdir / "logs"))
        reported: set[str] = set()
        with Display(view, self.workdir / "metrics", console) as display:
            while trainer.exit_code is None:
                if bootstrap.exit_code is not None:
                    raise ProcessDied(bootstrap.obituary())
                ended = [s for s in servers if s.exit_code not in (None, 0)]
                display.update()
                for server in ended:
                    if server.name not in reported:
                        reported.add(server.name)
                        if server.exit_code == EXIT_BAD_INPUT and view.step == 0:
                            raise ProcessDied(server.obituary())
                        display.notice(_server_ended(server))
                time.sleep(REFRESH_S)
        if trainer.exit_code != 0:
            raise ProcessDied(trainer.obituary())


def prepare_workdir(workdir: Path, overwrite: bool) -> None:
    """Makes the run folder; an earlier run in it is removed only when told to.

    What a start that came to nothing left behind is no run: it has no metrics.

    Raises:
        ConfigError: An earlier run is there, or the folder cannot be written to.
    """
    make_workdir(workdir)
    metrics = workdir / "metrics"
    steps = metrics / "trainer.jsonl"
    is_run = (workdir / "summary.json").exists() or (
        steps.exists() and steps.stat().st_size > 0
    )
    if is_run and not overwrite:
        raise ConfigError(
            f"{workdir} holds an earlier run, and nothing was touched. Choose another "
            "folder with --workdir, or replace that run with --overwrite"
        )
    stale = [workdir / BOOTSTRAP_FILE, metrics / "swarm.jsonl"]
    if is_run:
        stale = [path for pattern in RUN_FILES for path in workdir.glob(pattern)]
    for path in stale:
        path.unlink(missing_ok=True)


def _server_ended(server: Child) -> str:
    """One line on a dead server; training goes on without it."""
    last_line = tail(server.log).splitlines()[-1]
    how = describe_exit(server.exit_code)
    return f"{server.name} {how}, training goes on: {last_line} ({server.log})"


def _exit_on(*signals: signal.Signals) -> None:
    """Turns signals into SystemExit, so that ``with`` blocks clean up."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for number in signals:
        signal.signal(number, leave)
