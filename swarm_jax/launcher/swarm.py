"""One run on one machine: a bootstrap, stage servers and a trainer, until its end."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from swarm_jax.launcher.churn import ChurnSettings
from swarm_jax.launcher.control import control_losses
from swarm_jax.launcher.environment import peer_environments, process_environment
from swarm_jax.launcher.figures import loss_difference
from swarm_jax.launcher.flags import EXIT_BAD_INPUT
from swarm_jax.launcher.mesh_option import ONE_DEVICE, MeshShape
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
from swarm_jax.launcher.roster import Roster
from swarm_jax.launcher.signals import exit_on_signals
from swarm_jax.launcher.soak import Soak
from swarm_jax.launcher.summary import finish_summary, summary_table
from swarm_jax.launcher.workdir import BOOTSTRAP_FILE
from swarm_jax.metrics import write_json

LOOPBACK = ("--host_maddrs", "/ip4/127.0.0.1/tcp/0")
BOOTSTRAP_TIMEOUT_S = 120.0
REFRESH_S = 0.2


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
        mesh: Devices of each stage server.
        tensorboard: Write the steps' figures for TensorBoard too.
        duration_s: End after so long, whatever ``steps`` says; None: after the steps.
        churn: Kill and stop peers meanwhile; needs ``duration_s``.
    """

    experiment: Sequence[str]
    num_stages: int
    steps: int
    workdir: Path
    cache_dir: Path
    peers_per_stage: int = 2
    device: str = "cpu"
    mesh: MeshShape = ONE_DEVICE
    tensorboard: bool = False
    duration_s: float | None = None
    churn: ChurnSettings | None = None

    def run(self, console: Console, resumed_step: int = 0) -> None:
        """Trains to the end, then prints the summary. Leaves no process behind.

        Args:
            resumed_step: What the run goes on from; 0 for a new one.

        Raises:
            ProcessDied: The bootstrap or the trainer ended before the run did, or a
                stage server could not start for a reason that its user can mend.
        """
        started_s = time.monotonic()
        exit_on_signals()
        if self.duration_s is None:
            self._run_steps(console, resumed_step)
        else:
            self._run_soak(self.duration_s, console)
        summary = finish_summary(self.workdir, time.monotonic() - started_s)
        console.print(summary_table(summary, self.workdir))

    def _run_steps(self, console: Console, resumed_step: int) -> None:
        with Processes(self.workdir / "logs") as processes:
            bootstrap, initial_peers = self._start_bootstrap(processes)
            servers = [
                self._start_server(processes, initial_peers, stage, replica)
                for stage in range(self.num_stages)
                for replica in range(self.peers_per_stage)
            ]
            # Of an earlier part nobody is left who could have a newer state.
            trainer = self._start_trainer(
                processes, initial_peers, "trainer", may_go_back=resumed_step > 0
            )
            view = self._run_view(len(servers), resumed_step)
            self._watch(view, bootstrap, servers, trainer, console)
        if not (self.workdir / "summary.json").exists():
            raise ProcessDied(f"No summary was written.\n{trainer.obituary()}")

    def _run_soak(self, duration_s: float, console: Console) -> None:
        """Trains for so long, under faults if any are asked for, then the control."""
        with Processes(self.workdir / "logs") as processes:
            bootstrap, initial_peers = self._start_bootstrap(processes)
            roster = Roster(
                partial(self._start_server, processes, initial_peers),
                partial(self._start_trainer, processes, initial_peers),
            )
            for _ in range(self.peers_per_stage):
                for stage in range(self.num_stages):
                    roster.start(stage)
            for _ in range(1 if self.churn is None else 2):
                roster.start(None)
            soak = Soak(
                roster,
                bootstrap,
                self.workdir,
                duration_s=duration_s,
                churn=self.churn,
                peers_per_stage=self.peers_per_stage,
            )
            soak.watch(self._run_view(len(roster.servers())), console)
        summary = soak.summary()
        if self.churn is not None:
            summary |= self._against_control(soak.losses(), console)
        path = self.workdir / "summary.json"
        finished = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, finished | summary)

    def _against_control(
        self, losses: dict[int, float], console: Console
    ) -> dict[str, Any]:
        """Trains the same steps in one process; the losses' largest difference."""
        if not losses:
            return {"loss_vs_control": None, "loss_vs_control_reason": "no step closed"}
        steps = max(losses)
        console.print(f"control: the same {steps} steps in one process")
        try:
            control = control_losses(
                self.experiment, steps, self.workdir, self.device, self.cache_dir
            )
        except ProcessDied as error:
            return {"loss_vs_control": None, "loss_vs_control_reason": str(error)}
        return {"loss_vs_control": loss_difference(losses, control)}

    def _run_view(self, servers: int, resumed_step: int = 0) -> RunView:
        headline = f"starting {servers} stage servers and a trainer; logs: "
        headline += str(self.workdir / "logs")
        return RunView(self.steps, headline, resumed_step)

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

    def _start_server(
        self,
        processes: Processes,
        initial_peers: Sequence[str],
        stage: int,
        replica: int,
    ) -> Child:
        """Starts a server; one with a number beyond the first takes another's place."""
        peers = self.num_stages * self.peers_per_stage
        environments = peer_environments(
            self.device, peers, self.cache_dir, self.mesh.devices
        )
        place = stage * self.peers_per_stage + replica % self.peers_per_stage
        name = f"stage{stage}-{replica}"
        arguments = [
            *self._worker_arguments(name, initial_peers),
            *("--stage", str(stage), "--device", self.device),
            *(() if self.mesh == ONE_DEVICE else ("--mesh", str(self.mesh))),
        ]
        command = module_command("scripts.run_server", arguments)
        return processes.start(name, command, environments[place])

    def _start_trainer(
        self,
        processes: Processes,
        initial_peers: Sequence[str],
        name: str,
        may_go_back: bool = False,
    ) -> Child:
        kills_stage = self.churn is not None and self.churn.kill_whole_stage
        tensorboard = self.tensorboard and name == "trainer"
        arguments = [
            *self._worker_arguments(name, initial_peers),
            *("--device", "cpu", "--cache_dir", str(self.cache_dir)),
            *(("--tensorboard",) if tensorboard else ()),
            *(("--restart_if_lost",) if kills_stage or may_go_back else ()),
        ]
        return processes.start(
            name,
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
        view: RunView,
        bootstrap: Child,
        servers: Sequence[Child],
        trainer: Child,
        console: Console,
    ) -> None:
        """Shows progress until the trainer has ended well."""
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
                        if server.exit_code == EXIT_BAD_INPUT and not view.has_begun:
                            raise ProcessDied(server.obituary())
                        display.notice(_server_ended(server))
                time.sleep(REFRESH_S)
        if trainer.exit_code != 0:
            raise ProcessDied(trainer.obituary())


def _server_ended(server: Child) -> str:
    """One line on a dead server; training goes on without it."""
    last_line = tail(server.log).splitlines()[-1]
    how = describe_exit(server.exit_code)
    return f"{server.name} {how}, training goes on: {last_line} ({server.log})"
