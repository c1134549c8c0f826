"""States by layer: names, and every partition onto every other one."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.config import GPTConfig
from models.functional import from_layers, make_stage, to_layers
from swarm_jax.errors import CheckpointError
from swarm_jax.stage.checkpoints import CheckpointFolder
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.layered import LayeredState, nested, stored_as, tied_layer
from swarm_jax.stage.manifests import Saved

CONFIG = GPTConfig(
    num_layers=4,
    model_dim=8,
    num_heads=2,
    ffn_dim=16,
    vocab_size=11,
    sequence_length=5,
)
MODELS = {
    "plain": CONFIG,
    "boundaries": dataclasses.replace(
        CONFIG, boundaries=(1, 3), boundary="bottleneck", boundary_factor=2
    ),
    "tied": dataclasses.replace(CONFIG, tied_head=True, positions="learned"),
}
PARTITIONS = [
    tuple(np.diff((0, *cuts, 4)).tolist())
    for count in range(4)
    for cuts in itertools.combinations((1, 2, 3), count)
]
OPTIMIZERS = {
    "adamw": optax.adamw(1e-3),
    "sgd": optax.sgd(1e-3),
    "momentum": optax.chain(optax.clip(1.0), optax.sgd(1e-3, momentum=0.9)),
    "masked": optax.masked(
        optax.adam(1e-3),
        lambda params: jax.tree.map_with_path(
            lambda path, _: path[-1].key != "scale", params
        ),
    ),
    "hyperparameters": optax.inject_hyperparams(optax.lion)(1e-3),
}


@functools.cache
def structure_of(first_layer, num_layers, optimizer, model="plain"):
    stage = make_stage(MODELS[model], first_layer, num_layers)

    def init():
        params = stage.init(0)
        return params, optimizer.init(params)

    return jax.eval_shape(init)


def layered_stages(partition, optimizer, model="plain"):
    firsts = np.cumsum((0, *partition[:-1])).tolist()
    return [
        LayeredState(structure_of(first, count, optimizer, model), first)
        for first, count in zip(firsts, partition, strict=True)
    ]


def random_leaves(structure):
    """Other bits in every array; those of counts are small."""
    generator = np.random.default_rng(0)

    def draw(leaf):
        values = generator.normal(size=leaf.shape) * 100
        return np.asarray(values).astype(leaf.dtype)

    return [draw(leaf) for leaf in jax.tree.leaves(structure)]


def as_bytes(leaves):
    return [(leaf.dtype, leaf.shape, leaf.tobytes()) for leaf in leaves]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_splitting_and_joining_gives_the_same_bytes(optimizer):
    structure = structure_of(0, 4, optimizer)
    leaves, layered = random_leaves(structure), LayeredState(structure, 0)
    assert as_bytes(layered.join(*layered.split(leaves))) == as_bytes(leaves)


@pytest.mark.parametrize(
    ("model", "name"),
    [*(("plain", name) for name in OPTIMIZERS), ("boundaries", "masked")],
)
def test_every_partition_is_restored_onto_every_other(model, name):
    """Also one that is cut at a boundary layer onto one that is not."""
    optimizer = OPTIMIZERS[name]
    structure = structure_of(0, 4, optimizer, model)
    layers, shared = LayeredState(structure, 0).split(random_leaves(structure))
    by_partition = {
        partition: [
            (stage, stage.join({name: layers[name] for name in stage.names}, shared))
            for stage in layered_stages(partition, optimizer, model)
        ]
        for partition in PARTITIONS
    }
    assert len(by_partition) == 8
    for source, target in itertools.product(by_partition.values(), repeat=2):
        saved, counts = {}, {}
        for stage, leaves in source:
            stage_layers, counts = stage.split(leaves)
            assert not saved.keys() & stage_layers.keys()
            saved |= stage_layers
        for stage, leaves in target:
            mine = {name: saved[name] for name in stage.names}
            assert as_bytes(stage.join(mine, counts)) == as_bytes(leaves)


@pytest.mark.parametrize("model", MODELS)
def test_partitions_on_disk_are_restored_onto_others(tmp_path, model):
    partitions = (4,), (1, 3), (2, 1, 1), (1, 1, 1, 1)
    optimizer = OPTIMIZERS["adamw"]
    structure = structure_of(0, 4, optimizer, model)
    layers, shared = LayeredState(structure, 0).split(random_leaves(structure))
    layers["tied"] = tied_layer(layers["embed"])
    for partition in partitions:
        folder = CheckpointFolder(tmp_path / str(partition), model_fingerprint="ours")
        digests = {}
        for stage, layered in enumerate(layered_stages(partition, optimizer, model)):
            leaves = layered.join({n: layers[n] for n in layered.names}, shared)
            saved = Saved(5, 0, f"stage {stage}", (4, 0.5))
            digests[stage] = folder.save(
                stage, len(partition), saved, *layered.split(leaves)
            )
        folder.complete(5, 0, digests, config={}, summary={})
        for target in partitions:
            for layered in layered_stages(target, optimizer, model):
                saved, *arrays = folder.load(5, layered.names)
                mine = {name: layers[name] for name in layered.names}
                expected = layered.join(mine, shared)
                assert as_bytes(layered.join(*arrays)) == as_bytes(expected)
                assert saved.last_commit == (4, 0.5)


def test_layers_and_arrays_have_names_that_tell_no_partition():
    first, body, last = layered_stages((1, 2, 1), OPTIMIZERS["adamw"])
    assert first.names == ("embed", "layers.0")
    assert body.names == ("layers.1", "layers.2")
    assert last.names == ("layers.3", "head")
    layers, shared = first.split(random_leaves(structure_of(0, 1, optax.adamw(1e-3))))
    assert list(layers["embed"]) == [
        "params/embedding",
        "opt_state/0/mu/embedding",
        "opt_state/0/nu/embedding",
    ]
    assert "opt_state/0/mu/attention/qkv/kernel" in layers["layers.0"]
    assert list(shared) == ["opt_state/0/count"]


def test_boundary_layers_are_named_by_their_place_in_the_model():
    first, body, last = layered_stages((1, 1, 2), OPTIMIZERS["adamw"], "boundaries")
    assert first.names == ("embed", "layers.0", "compress.1")
    assert body.names == ("expand.1", "layers.1")
    assert last.names == ("layers.2", "compress.3", "expand.3", "layers.3", "head")
    structure = structure_of(2, 2, OPTIMIZERS["adamw"], "boundaries")
    layers, _ = last.split(random_leaves(structure))
    assert sorted(layers["expand.3"]) == [
        f"{state}/output/{leaf}"
        for state in ("opt_state/0/mu", "opt_state/0/nu", "params")
        for leaf in ("bias", "kernel")
    ]


def test_a_tied_table_is_where_it_was_saved_or_with_the_embedding():
    first, last = layered_stages((2, 2), OPTIMIZERS["adamw"], "tied")
    assert last.names == ("layers.2", "layers.3", "tied", "head")
    structure = structure_of(0, 2, OPTIMIZERS["adamw"], "tied")
    embed = first.split(random_leaves(structure))[0]["embed"]
    assert "params/positions" in embed
    assert list(tied_layer(embed)) == [
        "params/embedding",
        "opt_state/0/mu/embedding",
        "opt_state/0/nu/embedding",
    ]
    assert stored_as("tied", {"embed"}) == "embed"
    assert stored_as("tied", {"embed", "tied"}) == "tied"
    assert stored_as("head", {"embed"}) == "head"


@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_those_of_the_models_layers(model):
    stage = make_stage(MODELS[model], 1, 3)
    params = stage.init(7)
    optimizer = OPTIMIZERS["adamw"]
    layered = LayeredState((params, optimizer.init(params)), 1)
    leaves = [np.asarray(x) for x in jax.tree.leaves((params, optimizer.init(params)))]
    layers, _ = layered.split(leaves)
    found = {name: nested(arrays)["params"] for name, arrays in layers.items()}
    expected = to_layers(params, 1)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    jax.tree.map(np.testing.assert_array_equal, from_layers(found), params)


def test_a_stage_knows_the_structure_of_its_state(make_stages):
    (stage,) = make_stages((4,))
    compute = InlineCompute(stage.programs, lambda: stage.programs.copy(stage.params))
    layered = LayeredState(compute.state_structure, 0)
    assert layered.names == ("embed", *(f"layers.{i}" for i in range(4)), "head")
    specs = [
        (leaf.dtype, leaf.shape) for leaf in jax.tree.leaves(compute.state_structure)
    ]
    assert specs == [(jnp.dtype(d), shape) for d, shape in compute.state_specs]


def test_an_array_that_is_missing_is_named():
    (whole,) = layered_stages((4,), OPTIMIZERS["adamw"])
    layers, shared = whole.split(random_leaves(structure_of(0, 4, OPTIMIZERS["adamw"])))
    del layers["head"]["opt_state/0/nu/output/kernel"]
    with pytest.raises(CheckpointError, match="opt_state/0/nu/output/kernel"):
        whole.join(layers, shared)
