"""How fast a stage's jitted programs are on this process's device."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.table import Table

from models.functional import resolve_dtype
from scripts.stages import stage_flops
from scripts.wiring import make_init, make_programs
from swarm_jax.config import ExperimentConfig
from swarm_jax.stage.ahead import Ahead
from swarm_jax.stage.codec import Specs
from swarm_jax.stage.memory import fitting, tree_bytes
from swarm_jax.stage.programs import StagePrograms

Arrays = tuple[jax.Array, ...]

CALLS = 5
"""Calls that are timed together: a server's device has its next one at hand too."""

PEAK_TFLOPS = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
}
"""Dense bfloat16 products, by the vendor's data sheets."""

FORWARD, BACKWARD = 1, 2
"""FLOPs of a pass, in those of a forward pass. To compute forward again is none of the
model's."""


def stage_figures(
    config: ExperimentConfig,
    stage: int,
    repeats: int,
    peak_tflops: float | None,
    *,
    mesh: Mesh | None = None,
    make: Callable[[Specs], Arrays] | None = None,
    heard: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Measures one stage with its initial parameters.

    Args:
        peak_tflops: Of a device; None: what is known of a card of its name, if the
            model computes in bfloat16.
        mesh: Devices that share the stage; None: one.
        make: Makes what comes in; None: zeros.
        heard: Called with each row when it is known.

    Returns:
        ``rows``, one per program or pair of programs: ``case``, ``hardware``, ``ms``
        (median of ``repeats`` means over ``CALLS`` calls), ``model_tflop_per_s`` (None
        for the update) and ``utilisation`` of the devices' peak (None where it is not
        known).
        ``residual_bytes`` of a microbatch, ``workspace_bytes`` of the most demanding
        program, ``residuals_fit``: of how many microbatches; and ``peak_tflops``.
    """
    programs = make_programs(config, stage, mesh)
    init = make_init(config, stage, programs.layout)
    ahead = Ahead(programs, init)
    ahead.compile()
    if ahead.residuals is not None:
        ahead.compile_recomputing()
    hardware = jax.devices()[0].device_kind
    if peak_tflops is None and resolve_dtype(config.model) == jnp.bfloat16:
        peak_tflops = PEAK_TFLOPS.get(hardware)
    devices = 1 if mesh is None else mesh.size
    tokens = config.swarm.microbatch_size * config.model.sequence_length
    flops = stage_flops(config)[stage] * tokens
    rows = []
    arrays = make or zeros
    for case, passes, call in _cases(StageCalls(programs, init(), arrays)):
        ms = 1e3 * _median_s(call, repeats)
        speed = passes * flops / ms / 1e9 if passes else None
        known = speed is not None and peak_tflops is not None
        share = speed / (peak_tflops * devices) if known else None
        rows.append(
            {"case": case, "hardware": hardware, "ms": ms}
            | {"model_tflop_per_s": speed, "utilisation": share}
        )
        heard(rows[-1])
    return {
        "stage": stage,
        "rows": rows,
        "peak_tflops": peak_tflops,
        "residual_bytes": tree_bytes(ahead.residuals),
        "workspace_bytes": ahead.workspace_bytes,
        "residuals_fit": fitting(ahead, config.tuning.residual_bytes),
    }


def stage_table(figures: dict[str, Any]) -> Table:
    """The figures for people."""
    peak, fit = figures["peak_tflops"], figures["residuals_fit"]
    known = "peak not known: give --peak_tflops" if peak is None else f"peak {peak:g}"
    caption = (
        f"stage {figures['stage']} on {figures['rows'][0]['hardware']}; {known}; "
        f"residuals {figures['residual_bytes'] / 1e6:,.1f} MB a microbatch"
        + ("" if fit is None else f", those of {fit:,} fit")
        + f"; workspace {figures['workspace_bytes'] / 1e6:,.1f} MB"
    )
    table = Table("", "ms", "model TFLOP/s", "of the peak", caption=caption)
    for row in figures["rows"]:
        speed, share = row["model_tflop_per_s"], row["utilisation"]
        table.add_row(
            row["case"],
            f"{row['ms']:.3f}",
            "" if speed is None else f"{speed:,.3f}",
            "" if share is None else f"{share:.1%}",
        )
    return table


def _cases(stage: "StageCalls") -> Sequence[tuple[str, int, Callable[[], Any]]]:
    """What is measured: its name, FLOPs in forward passes, and a call of it."""
    if stage.is_last:
        both = FORWARD + BACKWARD
        cases = [
            ("forward and loss", FORWARD, stage.loss),
            ("forward, loss and backward", both, stage.loss_backward),
        ]
    else:
        cases = [
            ("forward", FORWARD, stage.forward),
            ("forward, keeping residuals", FORWARD, stage.forward_keeping),
            ("backward from residuals", BACKWARD, stage.backward),
            ("backward, computing forward again", BACKWARD, stage.recompute),
            ("there and back, keeping", FORWARD + BACKWARD, stage.keeping_both),
            ("there and back, again", FORWARD + BACKWARD, stage.recomputing_both),
        ]
    return *cases, ("update", 0, stage.update)


class StageCalls:
    """Calls of the programs, each with what the one before it left.

    Args:
        make: Makes arrays of given dtypes and shapes: what comes in.
    """

    def __init__(
        self, programs: StagePrograms, params: Any, make: Callable[[Specs], Arrays]
    ):
        self.is_last = not programs.gradient_specs
        self._programs = programs
        self._params = programs.copy(params)
        self._opt_state = programs.init_optimizer(params)
        self._weights = programs.cast(programs.copy(params))
        self._total = programs.zeros()
        specs = programs.input_specs, programs.gradient_specs, (programs.targets_spec,)
        arrived = tuple(map(make, specs))
        if programs.layout is not None:
            arrived = jax.device_put(arrived, programs.layout.spread(arrived))
        self._x, self._grad_y, (self._targets_BL,) = arrived
        self._residuals: Any = None

    def forward(self) -> Any:
        return self._programs.forward(self._weights, self._x)

    def forward_keeping(self) -> Any:
        y, self._residuals, finite = self._programs.forward_keeping(
            self._weights, self._x
        )
        return y, self._residuals, finite

    def backward(self) -> Any:
        *results, self._total = self._programs.backward_adding(
            self._weights, self._residuals, self._grad_y, self._total
        )
        return results, self._total

    def recompute(self) -> Any:
        *results, self._total = self._programs.recompute_backward_adding(
            self._weights, self._x, self._grad_y, self._total
        )
        return results, self._total

    def keeping_both(self) -> Any:
        self.forward_keeping()
        return self.backward()

    def recomputing_both(self) -> Any:
        self.forward()
        return self.recompute()

    def loss(self) -> Any:
        return self._programs.loss(self._weights, self._x, self._targets_BL)

    def loss_backward(self) -> Any:
        *results, self._total = self._programs.loss_backward_adding(
            self._weights, self._x, self._targets_BL, self._total
        )
        return results, self._total

    def gradient_norm(self) -> float:
        """Of what has been summed so far."""
        total = self._programs.scale(self._total, 1.0, 1.0)
        return float(self._programs.squared_norm(total)) ** 0.5

    def update(self) -> Any:
        self._residuals = None
        self._params, self._opt_state, *rest = self._programs.update(
            self._params, self._opt_state, self._total, 1.0
        )
        return self._params, self._opt_state, rest


def zeros(specs: Specs) -> Arrays:
    return tuple(jnp.zeros(shape, dtype) for dtype, shape in specs)


def _median_s(call: Callable[[], Any], repeats: int) -> float:
    """Of one call, after a first one."""
    jax.block_until_ready(call())
    times_s = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        for _ in range(CALLS):
            results = call()
        jax.block_until_ready(results)
        times_s.append((time.perf_counter() - began_s) / CALLS)
    return statistics.median(times_s)
