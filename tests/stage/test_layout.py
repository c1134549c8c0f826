"""A stage on several devices computes, holds and hands out what one device would."""

import asyncio
from functools import cache, partial

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from swarm_jax.stage.ahead import Ahead
from swarm_jax.stage.codec import make_boundary_codec
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.layout import make_layout
from swarm_jax.stage.memory import plan_residuals, standing_bytes, tree_bytes
from swarm_jax.stage.programs import make_stage_programs
from swarm_jax.stage.residuals import ResidualBudget
from swarm_jax.stage.threaded import ThreadedCompute
from tests.stage.conftest import MODEL_DIM, VOCAB_SIZE, ToyStage, cast_to

TOKENS_SHAPE = 4, 10
STAGES = ToyStage(0, 1), ToyStage(1, 3)
MESHES = (1, 2), (2, 1), (2, 2)
SPECS = {
    "blocks": {"kernel": P(None, None, "model"), "scale": P()},
    "embed": P(None, "model"),
    "head": P("model", None),
}


def same(tree):
    return tree


@cache
def make_programs(stage, shape, dtype="float32", wire="float32"):
    """``shape`` of the mesh; None for one device."""
    layout = None
    if shape is not None:
        devices = np.asarray(jax.devices()[: shape[0] * shape[1]])
        mesh = Mesh(devices.reshape(shape), ("data", "model"))
        params = jax.eval_shape(lambda: stage.init(0))
        specs = {name: SPECS[name] for name in params}
        layout = make_layout(mesh, params, specs, same, same)
    codec = make_boundary_codec((wire, wire), (*TOKENS_SHAPE, MODEL_DIM), dtype)
    return make_stage_programs(
        stage,
        partial(cast_to, dtype),
        optax.adamw(1e-2),
        input_codec=None if stage.is_first else codec,
        output_codec=None if stage.is_last else codec,
        tokens_shape=TOKENS_SHAPE,
        clip_norm=0.5,
        layout=layout,
    )


def make_init(stage, programs):
    params = jax.tree.map(np.asarray, stage.init(7))
    if programs.layout is None:
        return lambda: programs.copy(params)
    return lambda: programs.layout.copy(params)


@pytest.fixture
def make_pair():
    """``make(shape, kind, ...)``: a first and a last stage."""
    made = []

    def make(shape, kind=InlineCompute, dtype="float32", wire="float32", **options):
        for stage in STAGES:
            programs = make_programs(stage, shape, dtype, wire)
            made.append(kind(programs, make_init(stage, programs), **options))
        return made[-2:]

    yield make
    for compute in made:
        compute.close()


def microbatch(seed):
    """inputs_BL, targets_BL."""
    batch, length = TOKENS_SHAPE
    generator = np.random.default_rng(seed)
    tokens = generator.integers(VOCAB_SIZE, size=(batch, length + 1), dtype=np.int32)
    targets_BL = tokens[:, 1:].copy()
    targets_BL[0, :3] = -1
    return tokens[:, :-1].copy(), targets_BL


class Count:
    def start(self):
        return True

    def settle(self, finite, loss_sum):
        assert finite


async def pass_one(pair, seed):
    """There and back; returns what left the stages."""
    (first, last), (inputs_BL, targets_BL) = pair, microbatch(seed)
    there = await first.forward((inputs_BL,), keep=True, order=seed)
    back = await last.loss_backward(there.y, targets_BL, count=Count(), order=seed)
    await first.backward(there.residuals, back.grad_x, count=Count(), order=seed)
    return [*there.y, *back.grad_x, np.asarray(back.loss_sum)]


async def train(pair, steps=2):
    """Returns all that left the stages, as a flat list of numpy arrays."""
    seen = []
    for step in range(steps):
        passes = await asyncio.gather(*(pass_one(pair, 3 * step + i) for i in range(3)))
        sums = [await compute.gradient_sum(0.1) for compute in pair]
        for compute, given in zip(pair, sums, strict=True):
            assert await compute.add_to_sum(given)
        norms = [
            (await compute.load_reduced(given)).squared_norm
            for compute, given in zip(pair, sums, strict=True)
        ]
        sums += [await compute.gradient_sum(1.0) for compute in pair]
        for compute in pair:
            await compute.apply(sum(norms) ** 0.5)
        x = microbatch(3 * step)[:1]
        before = await pair[0].forward(x, keep=False, order=0, previous=True)
        np.testing.assert_allclose(before.y[0], passes[0][0], rtol=1e-5, atol=1e-6)
        states = [await compute.state() for compute in pair]
        seen += [array for arrays in (*passes, *sums, *states) for array in arrays]
        seen += [np.asarray(norm) for norm in norms]
    return seen


async def close_alone(pair):
    for compute in pair:
        await compute.apply(await compute.reduce_alone(0.3))


def as_bytes(arrays):
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((1, 2), InlineCompute),
        ((2, 1), ThreadedCompute),
        ((2, 2), InlineCompute),
        ((2, 2), ThreadedCompute),
    ],
)
def test_what_leaves_a_mesh_equals_what_leaves_one_device(shape, kind, make_pair):
    expected = asyncio.run(train(make_pair(None)))
    found = asyncio.run(train(make_pair(shape, kind)))
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is np.ndarray and ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", MESHES)
def test_alone_a_mesh_takes_the_gradient_that_it_would_get_back(shape, make_pair):
    async def scenario():
        ours, theirs = make_pair(shape), make_pair(shape)
        for pair in (ours, theirs):
            await pass_one(pair, 0)
        await close_alone(ours)
        for one, other in zip(ours, theirs, strict=True):
            reduced = await other.load_reduced(await other.gradient_sum(0.3))
            await other.apply(reduced.squared_norm)
            assert as_bytes(await one.state()) == as_bytes(await other.state())

    asyncio.run(scenario())


@pytest.mark.parametrize("wire", ["int8", "dynamic8"])
def test_codes_leave_a_mesh_as_they_leave_one_device(wire, make_pair):
    async def forward(shape):
        first, _ = make_pair(shape, wire=wire)
        there = await first.forward(microbatch(0)[:1], keep=False, order=0)
        return there.y

    expected = asyncio.run(forward(None))
    for shape in MESHES:
        for ours, theirs in zip(asyncio.run(forward(shape)), expected, strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            np.testing.assert_allclose(
                ours.astype(float), theirs.astype(float), rtol=1e-2, atol=1
            )


@pytest.mark.parametrize("shape", MESHES)
def test_states_go_from_a_mesh_to_one_device_and_back_bit_for_bit(shape, make_pair):
    async def scenario():
        meshed, single = make_pair(shape), make_pair(None)
        await train(meshed, steps=1)
        for there, here in zip(meshed, single, strict=True):
            assert there.state_specs == here.state_specs
            assert there.sum_specs == here.sum_specs
            assert there.state_structure == here.state_structure
            state = await there.state()
            assert await there.digest() != await here.digest()
            await here.load_state(state)
            assert await there.digest() == await here.digest()
            await there.reset()
            assert as_bytes(await there.state()) != as_bytes(state)
            await there.load_state(await here.state())
            assert as_bytes(await there.state()) == as_bytes(state)
            assert_divided(there, shape)

    asyncio.run(scenario())


def assert_divided(compute, shape):
    """Each device has its share of what a parameter has once, and no more."""
    held = compute._params, compute._opt_state, compute._gradient_sum
    for tree in held:
        for path, leaf in jax.tree.leaves_with_path(tree):
            (local,) = {shard.data.shape for shard in leaf.addressable_shards}
            assert len(leaf.addressable_shards) == shape[0] * shape[1]
            if jax.tree_util.keystr(path).endswith("['kernel']"):
                assert leaf.size == np.prod(local) * shape[0] * shape[1]
    for device in jax.tree.leaves(held)[0].devices():
        on_device = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(held)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert on_device == tree_bytes(held)


@pytest.mark.parametrize("shape", MESHES)
def test_no_device_ever_holds_a_whole_matrix_of_the_state(shape, make_pair):
    first, last = make_pair(shape)
    for compute in (first, last):
        assert_divided(compute, shape)
    asyncio.run(train([first, last], steps=1))
    for compute in (first, last):
        assert_divided(compute, shape)
    assert len(last._weights["blocks"]) == 3
    for block in last._weights["blocks"]:
        assert block["kernel"].sharding.spec == P(None, "model")


def test_only_what_divides_is_divided_and_never_the_blocks():
    layout = make_programs(STAGES[1], (2, 2)).layout
    assert layout.state["blocks"]["kernel"].spec == P(None, "data", "model")
    assert layout.state["blocks"]["scale"].spec == P(None, "data")
    assert layout.state["head"].spec == P("model", None)  # 3 of 6 rows, 11 columns
    assert layout.sums["head"] == layout.state["head"]
    for block in layout.sums["blocks"]:
        assert block["kernel"].spec == P("data", "model")
        assert block["scale"].spec == P("data")
    opt_state = jax.eval_shape(optax.adamw(1e-2).init, STAGES[1].init(0))
    like = layout.like(opt_state)
    assert like[0].mu == like[0].nu == layout.state
    assert like[0].count == layout.replicated


def test_what_was_compiled_ahead_is_not_compiled_again(make_pair):
    """Whether residuals are kept or not: there is room for those of one microbatch."""
    jax.clear_caches()
    names = []

    def hear(event, seconds, **details):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            names.append(details["fun_name"])

    for stage in STAGES:
        programs = make_programs(stage, (2, 2), "bfloat16", "bfloat16")
        ahead = Ahead(programs, make_init(stage, programs), run_passes=True)
        ahead.compile()
        if ahead.residuals is not None:
            ahead.compile_recomputing()
    budget = ResidualBudget(1)
    wires = {"dtype": "bfloat16", "wire": "bfloat16"}
    pair = make_pair((2, 2), ThreadedCompute, **wires, residuals=budget)
    for compute in pair:
        asyncio.run(compute.ready())
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        asyncio.run(train(pair, steps=1))
        asyncio.run(close_alone(pair))
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
    assert names == []
    assert min(budget.take_record().values()) > 0


@pytest.mark.parametrize("shape", [(1, 2), (2, 2)])
def test_the_plan_is_of_what_one_device_holds(shape, make_pair):
    stage = STAGES[0]
    programs = make_programs(stage, shape)
    init = make_init(stage, programs)
    ahead = Ahead(programs, init)
    ahead.compile()
    first, _ = make_pair(shape)
    held = first._params, first._opt_state
    assert standing_bytes(ahead) == 2 * tree_bytes(
        (held, first._weights, first._gradient_sum)
    )
    x = microbatch(0)[:1]
    x = jax.device_put(x, programs.layout.spread(x))
    _, residuals, _ = programs.forward_keeping(first._weights, x)
    one = tree_bytes(ahead.residuals)
    for device in programs.layout.mesh.devices.flat:
        assert one == sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(residuals)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
    assert plan_residuals(programs, init, residual_bytes=3 * one, most=16) == 3
