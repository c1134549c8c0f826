"""Runs the variations of a sweep, several at a time; done ones are left as they are."""

import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm_jax.errors import ConfigError
from swarm_jax.launcher.environment import peer_environments
from swarm_jax.launcher.processes import Child, Processes, module_command
from swarm_jax.launcher.signals import exit_on_signals
from swarm_jax.launcher.variations import Variation
from swarm_jax.launcher.workdir import newest_checkpoint

RUNNERS = {
    "single": ("scripts.train_single", "--simulate_wire"),
    "launch": ("scripts.launch",),
    "pytorch": ("scripts.train_pytorch",),
}
"""Module and flags of what can train a variation."""

POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """How the variations are run.

    Attributes:
        path: Config file.
        runner: Key of ``RUNNERS``.
        device: Key of ``flags.PLATFORMS``.
        parallel: How many run at a time; they share cores, cards and card memory.
        workdir: Run folders go to ``WORKDIR/RUNNER/NAME``.
        cache_dir: Corpora and compiled programs, kept between runs.
    """

    path: str
    runner: str
    device: str
    parallel: int
    workdir: Path
    cache_dir: Path

    def folder(self, variation: Variation) -> Path:
        return self.workdir / self.runner / variation.name

    def is_done(self, variation: Variation) -> bool:
        """Whether its run folder holds the finished run.

        Raises:
            ConfigError: It holds the finished run of another experiment.
        """
        folder = self.folder(variation)
        if not (folder / "summary.json").exists():
            return False
        ran = json.loads((folder / "config.json").read_text())["experiment"]
        if ran != json.loads(json.dumps(dataclasses.asdict(variation.config))):
            raise ConfigError(
                f"{folder} holds a finished run of another experiment (see config.json "
                "there): choose another folder with --workdir, or remove that one"
            )
        return True

    def run(
        self, variations: Sequence[Variation], say: Callable[[str], None]
    ) -> list[Child]:
        """Runs what is not done. Leaves no process behind, however it ends.

        Args:
            say: Told what there is to do, and of every run that ends.

        Returns:
            Those that failed.

        Raises:
            ConfigError: A run folder holds another experiment, or there is no such
                device.
        """
        waiting = [v for v in variations if not self.is_done(v)]
        say(
            f"{len(variations) - len(waiting)} of {len(variations)} runs are done, "
            f"{self.parallel} at a time; logs: {self._logs}"
        )
        environments = peer_environments(self.device, self.parallel, self.cache_dir)
        failed = []
        exit_on_signals()
        with Processes(self._logs) as processes:
            ends = self._ends(processes, waiting, environments)
            for count, (variation, child) in enumerate(ends, start=1):
                if child.exit_code == 0 and self.is_done(variation):
                    say(f"[{count}/{len(waiting)}] {variation.name}")
                else:
                    failed.append(child)
                    say(f"[{count}/{len(waiting)}] FAILED: {child.obituary()}")
        return failed

    @property
    def _logs(self) -> Path:
        return self.workdir / self.runner / "logs"

    def _ends(
        self,
        processes: Processes,
        variations: Iterable[Variation],
        environments: Iterable[Mapping[str, str]],
    ) -> Iterator[tuple[Variation, Child]]:
        """Runs them, one in each environment at a time; yields them as they end."""
        waiting, free = deque(variations), deque(environments)
        running: list[tuple[Variation, Child, Mapping[str, str]]] = []
        while waiting or running:
            while waiting and free:
                variation, environment = waiting.popleft(), free.popleft()
                command = self._command(variation)
                child = processes.start(variation.name, command, environment)
                running.append((variation, child, environment))
            time.sleep(POLL_S)
            for entry in [e for e in running if e[1].exit_code is not None]:
                running.remove(entry)
                variation, child, environment = entry
                free.append(environment)
                yield variation, child

    def _command(self, variation: Variation) -> list[str]:
        module, *flags = RUNNERS[self.runner]
        folder = self.folder(variation)
        if self.runner == "launch" and newest_checkpoint(folder) is None:
            flags.append("--overwrite")
        arguments = ["--config", self.path, *variation.overrides, *flags]
        arguments += ["--workdir", str(folder), "--device", self.device]
        arguments += ["--cache_dir", str(self.cache_dir)]
        return module_command(module, arguments)
