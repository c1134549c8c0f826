"""What fits a device."""

from functools import partial

import jax
import pytest

from swarm_jax.stage import memory
from swarm_jax.stage.ahead import Ahead
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.memory import plan_residuals, standing_bytes, tree_bytes

MOST = 16


@pytest.fixture
def stage(make_stages):
    return make_stages((1, 3), "bfloat16")[0]


@pytest.fixture
def ahead(stage):
    return Ahead(stage.programs, lambda: stage.params)


@pytest.fixture
def plan(stage):
    """``plan(residual_bytes) -> microbatches``."""

    def plan(residual_bytes=None):
        return plan_residuals(
            stage.programs,
            lambda: stage.params,
            residual_bytes=residual_bytes,
            most=MOST,
        )

    return plan


@pytest.fixture
def taken(ahead):
    """``taken() -> bytes`` that are no residuals, once ``ahead`` has compiled."""

    def taken():
        waiting = MOST * tree_bytes((ahead.x, ahead.grad_y))
        return standing_bytes(ahead) + waiting + ahead.workspace_bytes

    return taken


@pytest.fixture
def recomputing(monkeypatch):
    """Which stages have compiled what recomputes."""
    compiled = []
    monkeypatch.setattr(
        Ahead, "compile_recomputing", lambda self: compiled.append(self)
    )
    return compiled


def test_a_microbatchs_residuals_are_as_large_as_the_plan_says(
    stage, ahead, make_microbatch
):
    weights = stage.programs.cast(stage.params)
    _, residuals, _ = stage.programs.forward_keeping(weights, make_microbatch(0)[:1])
    assert tree_bytes(residuals) == tree_bytes(ahead.residuals) > 0


def test_as_many_fit_as_the_budget_holds(plan, ahead, recomputing):
    one = tree_bytes(ahead.residuals)
    assert [plan(bytes_) for bytes_ in (0, one - 1, one, 3 * one)] == [0, 0, 1, 3]
    assert len(recomputing) == 4
    assert plan(MOST * one) == MOST
    assert len(recomputing) == 4  # never needed, so never compiled


def test_without_a_number_the_device_is_asked(
    plan, ahead, taken, recomputing, monkeypatch
):
    ahead.compile()
    one = tree_bytes(ahead.residuals)
    for more, fit in ((0, 0), (5 * one, 5), (-taken(), 0)):
        monkeypatch.setattr(memory, "device_bytes", lambda more=more: taken() + more)
        assert plan() == fit


def test_what_recomputes_takes_its_workspace_from_the_residuals(
    plan, ahead, taken, monkeypatch
):
    ahead.compile()
    before, smaller = taken(), ahead.workspace_bytes
    ahead.compile_recomputing()
    assert ahead.workspace_bytes > smaller
    one = tree_bytes(ahead.residuals)
    monkeypatch.setattr(memory, "device_bytes", lambda: before + 5 * one)
    assert plan() == 5 - -((smaller - ahead.workspace_bytes) // one)


def test_what_stands_is_what_a_stage_holds(stage, ahead):
    compute = InlineCompute(stage.programs, partial(stage.programs.copy, stage.params))
    held = compute._params, compute._opt_state
    weights, total = compute._weights, compute._gradient_sum
    expected = 2 * tree_bytes((held, weights, total))
    assert standing_bytes(ahead) == expected


def test_delayed_updates_hold_one_more_sum_and_two_more_of_weights(stage, ahead):
    more = tree_bytes((ahead.weights, ahead.weights, ahead.total))
    assert standing_bytes(ahead, True) == standing_bytes(ahead) + more


def test_an_accelerator_says_what_it_has(monkeypatch):
    class Card:
        def memory_stats(self):
            return {"bytes_limit": 1000}

    monkeypatch.setattr(jax, "local_devices", lambda: [Card()])
    assert memory.device_bytes() == 900


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP_LIMIT", tmp_path / "memory.max")
    whole, devices = memory.device_bytes(), len(jax.local_devices())
    assert whole > 2**20
    for text, expected in (("max\n", whole), ("4000000\n", 1_000_000 // devices)):
        memory.CGROUP_LIMIT.write_text(text)
        assert memory.device_bytes() == expected


def test_the_last_stage_keeps_no_residuals(make_stages):
    last = make_stages((1, 3))[1]
    plan = plan_residuals(
        last.programs, lambda: last.params, residual_bytes=0, most=MOST
    )
    assert plan is None
