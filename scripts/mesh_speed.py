"""How fast a stage is on several devices, beside one of them, in one process."""

import argparse
import gc
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from scripts.meshes import make_mesh
from scripts.stage_speed import StageCalls, random_microbatch, stage_figures
from scripts.wiring import make_init, make_programs
from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import ConfigError
from swarm_jax.launcher.mesh_option import ONE_DEVICE, MeshShape
from swarm_jax.metrics import write_json


def mesh_figures(
    args: argparse.Namespace,
    config: ExperimentConfig,
    about: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Measures one device, then each mesh of ``args.mesh``, with random data.

    A row is printed, and written to ``args.json``, as soon as it is known.

    Args:
        about: What the report is of.

    Returns:
        ``about``, and ``rows`` as ``stage_speed.stage_figures`` has them, with ``mesh``
        and ``speedup`` over one device. ``checks``, one per mesh: ``gradient_norm`` of
        one microbatch, ``loss_sum`` of the last stage (else None), and the relative
        differences of both from those of one device.

    Raises:
        ConfigError: A mesh takes more devices than there are.
    """
    devices = jax.local_devices()
    for shape in args.mesh:
        if shape.devices > len(devices):
            raise ConfigError(
                f"--mesh {shape} takes {shape.devices} devices, and there are "
                f"{len(devices)} ({jax.default_backend()})"
            )
    report: dict[str, Any] = about | {"stage": args.stage, "repeats": args.repeats}
    report |= {"rows": [], "checks": []}
    one: dict[str, float] = {}

    def save() -> None:
        if args.json:
            write_json(args.json, report)

    for shape in _each_once((ONE_DEVICE, *args.mesh)):
        mesh = make_mesh(shape, devices)

        def heard(row: dict[str, Any], shape: MeshShape = shape) -> None:
            what = row["case"], row["remat"]
            speedup = one.setdefault(what, row["ms"]) / row["ms"]
            report["rows"].append({"mesh": str(shape)} | row | {"speedup": speedup})
            speed = f"{row['ms']:.3f} ms, {speedup:.2f} x one device"
            console.print(f"{shape}  {row['case']}: {speed}")
            save()

        stage_figures(
            config,
            args.stage,
            args.repeats,
            args.peak_tflops,
            args.remat or [config.tuning.remat],
            mesh=mesh,
            heard=heard,
        )
        gc.collect()  # the parameters of one mesh before those of the next
        found = {"mesh": str(shape)} | _check(config, args.stage, mesh)
        report["checks"].append(found | _differences(found, report["checks"]))
        console.print(_check_line(report["checks"][-1]))
        save()
    return report


def _each_once(shapes: Sequence[MeshShape]) -> list[MeshShape]:
    return list(dict.fromkeys(shapes))


def _check(
    config: ExperimentConfig, stage: int, mesh: Mesh | None
) -> dict[str, float | None]:
    """Loss and gradient norm of one microbatch, with the initial parameters."""
    programs = make_programs(config, stage, mesh)
    params = make_init(config, stage, programs.layout)()
    calls = StageCalls(programs, params, random_microbatch(config, stage))
    loss_sum = None
    if calls.is_last:
        (_, loss_sum, _), _ = calls.loss_backward()
        loss_sum = float(loss_sum)
    else:
        calls.keeping_both()
    return {"loss_sum": loss_sum, "gradient_norm": calls.gradient_norm()}


def _differences(
    found: dict[str, Any], before: Sequence[dict[str, Any]]
) -> dict[str, float | None]:
    """Relative ones, from the first check."""
    first = before[0] if before else found
    return {
        f"{name}_difference": None
        if first[name] is None
        else abs(found[name] / first[name] - 1)
        for name in ("loss_sum", "gradient_norm")
    }


def _check_line(check: dict[str, Any]) -> str:
    names = [n for n in ("loss_sum", "gradient_norm") if check[n] is not None]
    parts = [
        f"{name} {check[name]:.6g} (differs by {check[f'{name}_difference']:.1e})"
        for name in names
    ]
    return f"{check['mesh']}  {', '.join(parts)}"
