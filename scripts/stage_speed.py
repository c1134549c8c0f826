"""How fast a stage's jitted programs are on this process's device."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.table import Table

from models.functional import resolve_dtype
from scripts.kernel_times import kernel_figures
from scripts.stages import stage_flops, stage_layers
from scripts.wiring import boundary_codec, make_init, make_programs
from swarm_jax.config import ExperimentConfig, override
from swarm_jax.stage.ahead import Ahead
from swarm_jax.stage.memory import fitting, tree_bytes
from swarm_jax.stage.programs import StagePrograms

CALLS = 5
"""Calls that are timed together: a server's device has its next one at hand too."""

PEAK_TFLOPS = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
}
"""Dense bfloat16 products, by the vendor's data sheets."""

GRADIENT_SCALE = 1e-3
"""Deviation of the gradients that a stage is given."""

FORWARD, BACKWARD = 1, 2
"""FLOPs of a pass, in those of a forward pass. To compute forward again is none of the
model's."""


def stage_figures(
    config: ExperimentConfig,
    stage: int,
    repeats: int,
    peak_tflops: float | None,
    remats: Sequence[str],
    *,
    mesh: Mesh | None = None,
    heard: Callable[[dict[str, Any]], None] = lambda row: None,
    profile: bool = False,
) -> dict[str, Any]:
    """Measures one stage with its initial parameters, and a random microbatch.

    It is random because GPUs multiply zeros faster than data: fewer bits change, so
    that less power is drawn, and clocks stay higher.

    Args:
        peak_tflops: Of a device; None: what is known of a card of its name, if the
            model computes in bfloat16.
        remats: Values of ``tuning.remat``.
        mesh: Devices that share the stage; None: one.
        heard: Called with each row when it is known.
        profile: Whether to say which kernels take the time, too.

    Returns:
        ``rows``, one per program or pair of programs: ``case``, ``remat`` (None where
        it changes nothing), ``hardware``, ``ms`` (median of ``repeats`` means over
        ``CALLS`` calls), ``model_tflop_per_s`` (None for the update) and
        ``utilisation`` of the peak (None where it is not known). ``memory``, one per
        ``remat``: ``residual_bytes`` of a microbatch, ``workspace_bytes`` of the most
        demanding program, ``residuals_fit``: of how many microbatches. And
        ``peak_tflops``. With ``profile``: ``profiles`` of whole passes and of the
        update, ``kernel_times.kernel_figures`` each, with ``case`` and ``remat``.
    """
    hardware = jax.devices()[0].device_kind
    if peak_tflops is None and resolve_dtype(config.model) == jnp.bfloat16:
        peak_tflops = PEAK_TFLOPS.get(hardware)
    tokens = config.swarm.microbatch_size * config.model.sequence_length
    flops = stage_flops(config)[stage] * tokens
    devices = 1 if mesh is None else mesh.size
    rows, memory, profiles = [], [], []
    for remat in dict.fromkeys(remats):
        ours = override(config, {"tuning.remat": remat})
        taken, cases = _prepare(ours, stage, mesh)
        memory.append({"remat": remat} | taken)
        for case in cases:
            if memory[1:] and not case.differs:
                continue
            call_s = _median_s(case.call, repeats)
            speed = case.passes * flops / call_s / 1e12 if case.passes else None
            known = speed is not None and peak_tflops is not None
            share = speed / (peak_tflops * devices) if known else None
            rows.append(
                {"case": case.name, "remat": remat if case.differs else None}
                | {"hardware": hardware, "ms": 1e3 * call_s}
                | {"model_tflop_per_s": speed, "utilisation": share}
            )
            heard(rows[-1])
            if profile and case.passes not in (FORWARD, BACKWARD):
                name = {key: rows[-1][key] for key in ("case", "remat")}
                profiles.append(name | kernel_figures(case.call, CALLS))
    figures = {"rows": rows, "memory": memory, "peak_tflops": peak_tflops}
    return {"stage": stage} | figures | ({"profiles": profiles} if profile else {})


def stage_tables(figures: dict[str, Any]) -> tuple[Table, Table]:
    """The figures for people: speed and memory."""
    peak = figures["peak_tflops"]
    known = "peak not known: give --peak_tflops" if peak is None else f"peak {peak:g}"
    caption = f"stage {figures['stage']} on {figures['rows'][0]['hardware']}; {known}"
    speed = Table("", "ms", "model TFLOP/s", "of the peak", caption=caption)
    remat = None
    for row in figures["rows"]:
        if row["remat"] != remat and (remat := row["remat"]) is not None:
            speed.add_section()
            speed.add_row(remat)
        reached, share = row["model_tflop_per_s"], row["utilisation"]
        speed.add_row(
            row["case"],
            f"{row['ms']:.3f}",
            "" if reached is None else f"{reached:,.3f}",
            "" if share is None else f"{share:.1%}",
        )
    memory = Table("tuning.remat", "residuals, MB", "that fit", "workspace, MB")
    for row in figures["memory"]:
        fit = row["residuals_fit"]
        memory.add_row(
            row["remat"],
            f"{row['residual_bytes'] / 1e6:,.1f}",
            "" if fit is None else f"{fit:,}",
            f"{row['workspace_bytes'] / 1e6:,.1f}",
        )
    return speed, memory


class _Case(NamedTuple):
    """Attributes:
    passes: Its FLOPs, in those of a forward pass.
    differs: Whether ``tuning.remat`` changes it.
    """

    name: str
    passes: int
    differs: bool
    call: Callable[[], Any]


def _prepare(
    config: ExperimentConfig, stage: int, mesh: Mesh | None
) -> tuple[dict[str, int | None], Sequence[_Case]]:
    """What a stage takes of memory, and what is measured of it."""
    programs = make_programs(config, stage, mesh)
    init = make_init(config, stage, programs.layout)
    ahead = Ahead(programs, init)
    ahead.compile()
    if ahead.residuals is not None:
        ahead.compile_recomputing()
    memory = {
        "residual_bytes": tree_bytes(ahead.residuals),
        "workspace_bytes": ahead.workspace_bytes,
        "residuals_fit": fitting(
            ahead,
            config.tuning.residual_bytes,
            config.tuning.max_queue,
            config.swarm.delayed_updates,
        ),
    }
    return memory, _cases(
        StageCalls(programs, init(), random_microbatch(config, stage))
    )


def _cases(stage: "StageCalls") -> Sequence[_Case]:
    """What is measured, first what is the same for every ``tuning.remat``."""
    both, update = FORWARD + BACKWARD, _Case("update", 0, False, stage.update)
    if stage.is_last:
        return (
            _Case("forward and loss", FORWARD, False, stage.loss),
            update,
            _Case("forward, loss and backward", both, True, stage.loss_backward),
        )
    return (
        _Case("forward", FORWARD, False, stage.forward),
        update,
        _Case("forward, keeping residuals", FORWARD, True, stage.forward_keeping),
        _Case("backward from residuals", BACKWARD, True, stage.backward),
        _Case("backward, computing forward again", BACKWARD, True, stage.recompute),
        _Case("there and back, keeping", both, True, stage.keeping_both),
        _Case("there and back, again", both, True, stage.recomputing_both),
    )


class Microbatch(NamedTuple):
    """What a stage is given, as its programs take it, on the device."""

    x: tuple[jax.Array, ...]
    grad_y: tuple[jax.Array, ...]
    targets_BL: jax.Array


def random_microbatch(config: ExperimentConfig, stage: int) -> Microbatch:
    """Tokens of the whole vocabulary; normal activations and gradients, encoded.

    Gradients are small, since their sum grows with every call.
    """
    x_key, gradient_key, targets_key = jax.random.split(jax.random.key(config.seed), 3)
    shape_BL = config.swarm.microbatch_size, config.model.sequence_length

    def tokens(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, shape_BL, 0, config.model.vocab_size, jnp.int32)

    def normal(key: jax.Array, next_stage: int) -> jax.Array:
        first_layer = stage_layers(config)[next_stage].first_layer
        shape_BLD = *shape_BL, config.model.width_after(first_layer)
        return jax.random.normal(key, shape_BLD, resolve_dtype(config.model))

    before, after = boundary_codec(config, stage), boundary_codec(config, stage + 1)
    x, grad_y = (tokens(x_key),), ()
    if before is not None:
        x = jax.jit(before.activations.encode)(normal(x_key, stage))
    if after is not None:
        gradient_BLD = GRADIENT_SCALE * normal(gradient_key, stage + 1)
        grad_y = jax.jit(after.gradients.encode)(gradient_BLD)
    return Microbatch(x, grad_y, tokens(targets_key))


class StageCalls:
    """Calls of the programs, each with what the one before it left."""

    def __init__(self, programs: StagePrograms, params: Any, microbatch: Microbatch):
        self._programs = programs
        self._params = programs.copy(params)
        self._opt_state = programs.init_optimizer(params)
        self._weights = programs.cast(programs.copy(params))
        self._total = programs.zeros()
        self._gradients = programs.scale(self._total, 1.0, 1.0)
        if programs.layout is not None:
            microbatch = jax.device_put(microbatch, programs.layout.spread(microbatch))
        self._x, self._grad_y, self._targets_BL = microbatch
        self._residuals: Any = None
        self.is_last = not programs.gradient_specs

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
        self._params, self._opt_state, *rest = self._programs.update(
            self._params, self._opt_state, self._gradients, 1.0
        )
        return self._params, self._opt_state, rest


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
