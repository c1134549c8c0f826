"""How a stage is divided among devices."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from models.functional import make_stage
from models.sharding import (
    AXES,
    MODEL,
    group_heads,
    head_groups,
    split_heads,
    ungroup_heads,
    weight_specs,
)
from tests.models.architectures import CHANGES, small


def make_mesh(data, model):
    devices = np.asarray(jax.devices()[: data * model])
    return Mesh(devices.reshape(data, model), AXES)


def shapes_of(config):
    return jax.eval_shape(make_stage(config, 0, config.num_layers).init, 0)


def shapes_named(config):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(shapes_of(config))
    }


def divided(config, mesh):
    """Names of parameters that are divided over "model", with the size of the axis."""
    specs = jax.tree.leaves(weight_specs(config, shapes_of(config), mesh))
    named = zip(shapes_named(config).items(), specs, strict=True)
    return {
        name: shape[spec.index(MODEL)] for (name, shape), spec in named if MODEL in spec
    }


@pytest.mark.parametrize("name", CHANGES)
def test_the_matrices_of_every_architecture_are_divided(name):
    config = small(name)
    found = divided(config, make_mesh(1, 2))
    assert all(size % 2 == 0 for size in found.values())
    expected = {"blocks/feed_forward/input/kernel", "blocks/feed_forward/output/kernel"}
    if name != "one_kv_head":
        expected |= {"blocks/attention/qkv/kernel", "blocks/attention/output/kernel"}
    if config.padded_vocab_size % 2 == 0:
        expected |= {"embed/embedding"}
        expected |= set() if config.tied_head else {"head/output/kernel"}
    if config.gated:
        expected |= {"blocks/feed_forward/gate/kernel"}
    assert expected <= found.keys()
    whole = [end for end in shapes_named(config) if end.endswith("scale")]
    assert whole and not found.keys() & set(whole)
    assert any("attention" in end for end in found) == (name != "one_kv_head")


def test_heads_stay_whole_unless_all_of_them_divide():
    assert head_groups(small("grouped_padded"), None) == 1
    assert head_groups(small("grouped_padded"), make_mesh(1, 2)) == 2
    assert head_groups(small("grouped_padded"), make_mesh(1, 4)) == 1
    assert head_groups(small("default"), make_mesh(1, 4)) == 4
    assert head_groups(small("one_kv_head"), make_mesh(1, 2)) == 1


@pytest.mark.parametrize("name", ["biased", "grouped_padded", "one_kv_head"])
def test_each_devices_columns_are_whole_heads(name):
    """A column is named by its head and place: what belongs together is together."""
    config, mesh = small(name), make_mesh(1, 2)
    groups, size = head_groups(config, mesh), config.head_dim
    heads = config.num_heads + 2 * config.kv_heads
    columns = np.arange(heads * size, dtype=np.float32)
    tree = {"attention": {"qkv": {"bias": columns}, "output": {"bias": columns}}}
    grouped = group_heads(config, mesh, tree)
    np.testing.assert_array_equal(grouped["attention"]["output"]["bias"], columns)
    back = ungroup_heads(config, mesh, grouped)
    np.testing.assert_array_equal(back["attention"]["qkv"]["bias"], columns)
    x_BLHK = np.asarray(grouped["attention"]["qkv"]["bias"]).reshape(1, 1, heads, size)
    counts = config.num_heads, config.kv_heads
    parts = split_heads(x_BLHK, *counts, groups, None)
    expected = np.split(columns.reshape(1, 1, heads, size), np.cumsum(counts), axis=2)
    for found, whole in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(found, whole)
    share = len(columns) // groups
    of_first_device = {column // size for column in x_BLHK.ravel()[:share].astype(int)}
    assert len(of_first_device) == heads // groups
