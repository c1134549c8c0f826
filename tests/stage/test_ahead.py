"""Nothing is compiled while somebody waits for it."""

from functools import partial

import jax
import pytest

from swarm_jax.sim.clock import run_virtual
from swarm_jax.stage.ahead import Ahead
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.residuals import ResidualBudget

UPLOAD = "jit(stage)"
"""How jax itself brings an array to the device."""


@pytest.fixture
def lowered():
    """Names of the programs that are lowered from now on."""
    names = []

    def hear(event: str, seconds: float, **details) -> None:
        if event.endswith("jaxpr_to_mlir_module_duration"):
            names.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(hear)
    yield names
    jax.monitoring.unregister_event_duration_listener(hear)


async def use_everything(first, last, microbatch, count):
    inputs_BL, targets_BL = microbatch
    for counting in (None, count):
        there = await first.forward((inputs_BL,), keep=True, order=0)
        await first.forward((inputs_BL,), keep=False, order=0)
        await last.loss(there.y, targets_BL, order=0)
        back = await last.loss_backward(there.y, targets_BL, count=counting, order=0)
        await first.backward(there.residuals, back.grad_x, count=counting, order=0)
    for compute in (first, last):
        sums = await compute.gradient_sum(0.5)
        await compute.add_to_sum(sums)
        await compute.apply((await compute.load_reduced(sums)).squared_norm)
        await compute.apply(await compute.reduce_alone(0.5))
        await compute.load_state(await compute.state())
        await compute.digest()
        await compute.clear()


class Count:
    def start(self):
        return True

    def settle(self, finite, loss_sum):
        pass


@pytest.mark.parametrize(
    ("is_ahead", "dtype", "microbatches"),
    [
        (True, "float32", None),
        (True, "bfloat16", None),
        (True, "float32", 0),
        (False, "bfloat16", None),
    ],
)
def test_what_was_compiled_ahead_is_not_compiled_again(
    is_ahead, dtype, microbatches, make_stages, make_microbatch, lowered
):
    jax.clear_caches()
    stages = make_stages((1, 3), dtype)
    inits = [partial(stage.programs.copy, stage.params) for stage in stages]
    for stage, init in zip(stages, inits, strict=True):
        if is_ahead:
            Ahead(stage.programs, init).compile()
    if microbatches == 0:
        Ahead(stages[0].programs, inits[0]).compile_recomputing()
    pair = [
        InlineCompute(stage.programs, init, residuals=ResidualBudget(microbatches))
        for stage, init in zip(stages, inits, strict=True)
    ]
    lowered.clear()
    run_virtual(use_everything(*pair, make_microbatch(0), Count()))
    assert (set(lowered) <= {UPLOAD}) == is_ahead, lowered


@pytest.mark.parametrize("run_passes", [True, False])
def test_passes_are_run_where_the_first_run_needs_the_device_for_itself(
    run_passes, make_stages
):
    jax.clear_caches()
    first, last = make_stages((1, 3), "bfloat16")
    for stage in (first, last):
        ahead = Ahead(
            stage.programs, lambda stage=stage: stage.params, run_passes=run_passes
        )
        ahead.compile()
        if stage is first:
            ahead.compile_recomputing()
    passes = [
        *(getattr(first.programs, name) for name in ("forward", "forward_keeping")),
        *(
            getattr(first.programs, f"{prefix}backward{adding}")
            for prefix in ("", "recompute_")
            for adding in ("", "_adding")
        ),
        *(
            getattr(last.programs, name)
            for name in ("loss", "loss_backward", "loss_backward_adding")
        ),
    ]
    assert [bool(program._cache_size()) for program in passes] == 9 * [run_passes]
