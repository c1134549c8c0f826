"""A swarm on this machine against its own limit, and against ``hivemind.moe``.

Three systems with the same stages, in turn, so that other work on the machine falls on
all of them: the swarm as users start it, training for a few steps; its programs chained
in one process without a network (``scripts.relay_limit``); the same blocks in PyTorch
behind ``hivemind.moe.Server`` (``scripts.relay_peer``). Where peers meet through
libp2p, also what its streams carry when nobody computes (``scripts.relay_streams``).
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from swarm_jax.config import ExperimentConfig
from swarm_jax.launcher.environment import peer_environments, process_environment
from swarm_jax.launcher.hardware import hardware
from swarm_jax.launcher.processes import (
    Child,
    ProcessDied,
    Processes,
    module_command,
    wait_ready,
)
from swarm_jax.launcher.relay_cases import WIRES, Case
from swarm_jax.launcher.relay_figures import CpuTimes, full_windows, relay_figures

POLL_S = 0.5
READY_S = 300.0
PEER_ATTEMPTS = 3
PEER_FOLDER = "swarm_jax-peer-"
"""For what hivemind.moe's processes would leave in the temporary folder."""
SOCKETS = "/tmp"
"""Their paths are limited to 107 bytes, so not below a long TMPDIR."""
MEDIANS = (
    *("bytes_per_token_per_boundary", "same_host_share", "cpu_s_per_gb"),
    *("microbatch_p50_ms", "microbatch_p95_ms"),
)
Figures = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayBench:
    """One case, measured.

    Attributes:
        case: Which.
        config: Its experiment.
        experiment: Arguments that name that experiment to a script.
        device: Key of ``flags.PLATFORMS``.
        cards: GPUs to use, as CUDA_VISIBLE_DEVICES names them.
        cache_dir: Of compiled programs.
        seconds: Of measuring the limit, and the peer.
        folder: For logs and run folders.
        peer_wires: Of hivemind; the fastest one is compared with.
    """

    case: Case
    config: ExperimentConfig
    experiment: Sequence[str]
    device: str
    cards: Sequence[str]
    cache_dir: Path
    seconds: float
    folder: Path
    peer_wires: Sequence[str] = WIRES

    def rounds(self, repeats: int, console: Console) -> Iterator[list[dict[str, Any]]]:
        """Measures ``repeats`` rounds of all systems.

        Yields:
            After each round, of all rounds so far, two rows: of the time in which the
            pipeline was full, and of whole steps.

        Raises:
            ProcessDied: One of the systems failed.
        """
        wire, speed = self._fastest_wire(console)
        swarm, limits, streams, peer = [], [], [], [speed]
        for repeat in range(repeats):
            swarm.append(self.swarm(f"swarm{repeat}"))
            limits.append(self.limit(f"limit{repeat}"))
            if not self.config.tuning.same_host:
                streams.append(self.streams(f"streams{repeat}"))
            peer.append(self.peer(f"peer{repeat}", wire, console))
            console.print(
                f"{self.case.name} {repeat}: swarm {swarm[-1]['tokens_per_s']:,.0f}, "
                f"limit {limits[-1]['tokens_per_s']:,.0f}, "
                f"hivemind.moe {peer[-1]:,.0f} tokens/s"
            )
            yield self._rows(swarm, limits, streams, peer, wire)

    def _rows(
        self,
        swarm: Sequence[Figures],
        limits: Sequence[Figures],
        streams: Sequence[Figures],
        peer: Sequence[float],
        wire: str,
    ) -> list[dict[str, Any]]:
        shared = {name: _median(run[name] for run in swarm) for name in MEDIANS}
        fetched = limits[0]["device_to_host_bytes_per_token"]
        shared |= {"device_to_host_bytes_per_token": fetched}
        shared |= {"peer_wire": wire, "rounds": len(swarm)}
        shared |= {"hardware": hardware(self.case.cards)}
        limit = [run["tokens_per_s"] for run in limits]
        if not self.case.cards:
            # The stages compute there, too: it would say nothing about the wire.
            shared["cpu_s_per_gb"] = None
        parts = (
            (self.case.name, "tokens_per_s"),
            (f"{self.case.name}_with_step_close", "closing_tokens_per_s"),
        )
        return [
            compared([run[key] for run in swarm], limit, peer)
            | against_streams(swarm, streams, key)
            | {"case": name, "microbatches_per_step": self._batch(name)}
            | shared
            for name, key in parts
        ]

    def swarm(self, name: str) -> dict[str, float]:
        """One run of the swarm: ``relay_figures``."""
        config, workdir = self.config, self.folder / name
        command = ["scripts.launch", *self.experiment, "--device", self.device]
        command += ["--peers-per-stage", "1", "--workdir", str(workdir)]
        command += ["--cache_dir", str(self.cache_dir)]
        with Processes(self.folder) as processes:
            child = self._start(processes, name, command, self._visible())
            cpu = watch_cpu(child)
            if child.exit_code != 0:
                raise ProcessDied(child.obituary())
        return relay_figures(
            workdir,
            full_windows(workdir, config.tuning.microbatches_in_flight),
            cpu,
            microbatch_tokens=config.swarm.microbatch_size
            * config.model.sequence_length,
            boundaries=config.swarm.num_stages - 1,
        )

    def limit(self, name: str) -> dict[str, float]:
        """The report of ``scripts.relay_limit``."""
        with Processes(self.folder) as processes:
            environment = peer_environments(self.device, 1, self.cache_dir)[0]
            command = ["scripts.relay_limit", *self.experiment, "--device", self.device]
            return self._report(processes, name, command, environment | self._visible())

    def streams(self, name: str) -> dict[str, float]:
        """The report of ``scripts.relay_streams``."""
        with Processes(self.folder) as processes:
            environment = process_environment(self.cache_dir)
            command = ["scripts.relay_streams"]
            return self._report(processes, name, command, environment)

    def peer(self, name: str, wire: str, console: Console) -> float:
        """Tokens per second of ``hivemind.moe``, a server for each stage.

        Now and then all its clients wait for an answer that does not come: it is then
        started again.
        """
        for attempt in range(PEER_ATTEMPTS):
            try:
                return self._peer(f"{name}.{attempt}", wire)
            except ProcessDied as error:
                failed = error
                console.print(f"{self.case.name}: hivemind.moe, {wire}: {error}")
        raise failed

    def _peer(self, name: str, wire: str) -> float:
        stages = self.config.swarm.num_stages
        shares = peer_environments(self.device, stages, self.cache_dir)
        with (
            tempfile.TemporaryDirectory(prefix=PEER_FOLDER, dir=SOCKETS) as temporary,
            Processes(self.folder) as processes,
        ):
            base = process_environment(self.cache_dir) | {"TMPDIR": temporary}
            servers = []
            for stage in range(stages):
                ready = self.folder / f"{name}-{stage}.json"
                command = ["scripts.relay_peer", *self.experiment, "--wire", wire]
                command += ["--serve", str(stage), "--ready_file", str(ready)]
                command += ["--device", self.device]
                threads = {"OMP_NUM_THREADS": shares[stage]["PJRT_NPROC"]}
                card = {}
                if self.cards:
                    card = {"CUDA_VISIBLE_DEVICES": self.cards[stage % len(self.cards)]}
                child = self._start(
                    processes, f"{name}-server{stage}", command, base | threads | card
                )
                servers.append((child, ready))
            for child, ready in servers:
                wait_ready(child, ready, READY_S)
            command = ["scripts.relay_peer", *self.experiment, "--wire", wire]
            command += ["--device", self.device]
            command += ["--servers", *(str(ready) for _, ready in servers)]
            return self._report(processes, name, command, base)["tokens_per_s"]

    def _fastest_wire(self, console: Console) -> tuple[str, float]:
        """Its name and speed."""
        speeds = {w: self.peer(f"wire-{w}", w, console) for w in self.peer_wires}
        for wire, speed in speeds.items():
            console.print(
                f"{self.case.name}: hivemind.moe, {wire}: {speed:,.0f} tokens/s"
            )
        return max(speeds.items(), key=lambda found: found[1])

    def _report(
        self,
        processes: Processes,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
    ) -> dict[str, float]:
        result = self.folder / f"{name}.json"
        command = [*command, "--json", str(result), "--seconds", str(self.seconds)]
        child = self._start(processes, name, command, environment)
        if child.popen.wait() != 0:
            raise ProcessDied(child.obituary())
        return json.loads(result.read_text())

    def _start(
        self,
        processes: Processes,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
    ) -> Child:
        module, *arguments = command
        return processes.start(name, module_command(module, arguments), environment)

    def _visible(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.cards)} if self.cards else {}

    def _batch(self, name: str) -> int | None:
        """Of the row that has a step's end in it."""
        is_steady = name == self.case.name
        return None if is_steady else self.config.microbatches_per_step


def watch_cpu(child: Child) -> CpuTimes:
    """Reads the processor time of a process and its descendants until it ends."""
    at_s, used_s = [], []
    while child.exit_code is None:
        at_s.append(time.monotonic())
        used_s.append(_cpu_s(child.popen.pid))
        time.sleep(POLL_S)
    return CpuTimes(at_s, used_s)


def compared(
    swarm: Sequence[float], limit: Sequence[float], peer: Sequence[float]
) -> dict[str, Any]:
    """Medians of speeds and of their ratios; the peer's are those of its best run.

    The peer stalls now and then, which is none of our merits.
    """
    return {
        "tokens_per_s": _median(swarm),
        "limit_tokens_per_s": _median(limit),
        "ratio_to_limit": _median(a / b for a, b in zip(swarm, limit, strict=True)),
        "peer_tokens_per_s": max(peer),
        "ratio_to_peer": _median(swarm) / max(peer),
    }


def against_streams(
    swarm: Sequence[Figures], streams: Sequence[Figures], key: str
) -> dict[str, float]:
    """Medians of what raw streams carry, in tokens, and of the swarm's share of it.

    Of both directions together: what crosses a boundary there crosses it back, too.
    Empty without ``streams``.
    """
    if not streams:
        return {}
    sides = ("there_bytes_per_s", "back_bytes_per_s")
    carried = [
        sum(raw[side] for side in sides) / run["bytes_per_token_per_boundary"]
        for run, raw in zip(swarm, streams, strict=True)
    ]
    shares = (run[key] / most for run, most in zip(swarm, carried, strict=True))
    return {
        "raw_stream_tokens_per_s": _median(carried),
        "ratio_to_raw_stream": _median(shares),
    }


def relay_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for people."""
    table = Table("case", "tokens/s", "of limit", "of streams", "x peer")
    table.add_column("p50, p95 ms")
    table.add_column("CPU s/GB")
    table.columns[0].no_wrap = True
    for row in rows:
        cpu, streams = row["cpu_s_per_gb"], row.get("ratio_to_raw_stream")
        table.add_row(
            row["case"],
            f"{row['tokens_per_s']:,.0f}",
            f"{row['ratio_to_limit']:.3f}",
            "-" if streams is None else f"{streams:.3f}",
            f"{row['ratio_to_peer']:.1f}",
            f"{row['microbatch_p50_ms']:,.0f}, {row['microbatch_p95_ms']:,.0f}",
            "-" if cpu is None else f"{cpu:.2f}",
        )
    return table


def _cpu_s(pid: int) -> float:
    total_s = 0.0
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return total_s
    for process in family:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total_s += times.user + times.system
    return total_s


def _median(values: Iterable[float]) -> float:
    return statistics.median(list(values))
