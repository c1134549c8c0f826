"""What a device does while it runs a program: its kernels, by kind."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.table import Table

from swarm_jax.errors import StartupError

KINDS = {
    "attention": r"sdpa|fmha|flash|attention",
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|dot|convolution|ynn",
    "copies": r"memcpy|memset|copy",
    "between devices": r"nccl|all-?reduce|all-?gather|reduce-?scatter|permute",
}
"""By name of the kernel or of XLA's operation; the first that fits. What XLA fused of
element-wise work and sums is the rest."""

REST = "element-wise and sums"
LARGEST = 8

HOLDS_OTHERS = re.compile(r"while|call|conditional")
"""Operations that are listed on a CPU beside those inside them."""


class Kernel(NamedTuple):
    """One run of a kernel.

    Attributes:
        name: XLA's for what it computes; the kernel's own where it has none.
        kind: One of ``KINDS``, or ``REST``.
    """

    name: str
    kind: str
    start_ns: float
    end_ns: float


def kernel_figures(call: Callable[[], Any], calls: int) -> dict[str, Any]:
    """Profiles ``calls`` calls, after a first one.

    Returns:
        ``ms``: Of one call, from the first kernel's start to the last one's end.
        ``kinds``: Milliseconds of a call, by kind; ``idle`` is when no kernel ran.
        Kernels that run side by side count each.
        ``kernels``: The largest ones: ``name``, ``kind``, ``ms`` of a call, ``runs``
        in one.

    Raises:
        StartupError: The profiler does not work here.
    """
    jax.block_until_ready(call())
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory(prefix="swarm_jax-profile-") as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(calls):
                results = call()
            jax.block_until_ready(results)
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    kernels = list(_kernels(data))
    if not kernels:
        raise StartupError(
            "the profiler saw no kernel: this process may lack the right to profile "
            "the device; leave --profile out"
        )
    return summed(kernels, calls)


def summed(kernels: list[Kernel], calls: int) -> dict[str, Any]:
    """As ``kernel_figures``, of what was seen."""
    per_call = 1e-6 / calls
    kinds: dict[str, float] = defaultdict(float)
    names: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kernel in kernels:
        took_ms = per_call * (kernel.end_ns - kernel.start_ns)
        kinds[kernel.kind] += took_ms
        names[kernel.name, kernel.kind].append(took_ms)
    span_ns = max(k.end_ns for k in kernels) - min(k.start_ns for k in kernels)
    idle_ms = per_call * (span_ns - _busy_ns(kernels))
    largest = sorted(names.items(), key=lambda item: -sum(item[1]))[:LARGEST]
    return {
        "ms": per_call * span_ns,
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1]))
        | {"idle": idle_ms},
        "kernels": [
            {"name": name, "kind": kind, "ms": sum(each), "runs": len(each) / calls}
            for (name, kind), each in largest
        ],
    }


def kernel_table(profiles: list[dict[str, Any]]) -> Table:
    """For people; each has the ``case`` that was profiled, too."""
    table = Table("", "kind", "ms", "share", "runs")
    for profile in profiles:
        table.add_section()
        table.add_row(profile["case"], "", f"{profile['ms']:.3f}", "", "")
        for kind, ms in profile["kinds"].items():
            table.add_row("", kind, f"{ms:.3f}", f"{ms / profile['ms']:.1%}", "")
        for kernel in profile["kernels"]:
            share = f"{kernel['ms'] / profile['ms']:.1%}"
            runs = f"{kernel['runs']:g}"
            name = f"  {kernel['name'][:40]}"
            table.add_row(name, kernel["kind"], f"{kernel['ms']:.3f}", share, runs)
    return table


def _kernels(data: jax.profiler.ProfileData) -> Iterable[Kernel]:
    """All that ran on devices; on the host, if that is the device."""
    on_host = jax.default_backend() == "cpu"
    where = "/host:" if on_host else "/device:"
    for plane in (plane for plane in data.planes if plane.name.startswith(where)):
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                is_kernel = line.name.startswith("Stream")
                if on_host:
                    is_kernel = operation and not HOLDS_OTHERS.match(operation)
                if is_kernel:
                    kind = _kind(f"{event.name} {operation}")
                    end_ns = event.start_ns + event.duration_ns
                    yield Kernel(operation or event.name, kind, event.start_ns, end_ns)


def _kind(name: str) -> str:
    fits = (kind for kind, words in KINDS.items() if re.search(words, name, re.I))
    return next(fits, REST)


def _busy_ns(kernels: list[Kernel]) -> float:
    busy_ns = until_ns = 0.0
    for kernel in sorted(kernels, key=lambda kernel: kernel.start_ns):
        begins_ns = max(until_ns, kernel.start_ns)
        busy_ns += max(0.0, kernel.end_ns - begins_ns)
        until_ns = max(until_ns, kernel.end_ns)
    return busy_ns
