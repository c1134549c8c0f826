"""Where the arrays of a stage are on a peer's devices."""

import jax
import pytest

from models.functional import make_stage
from scripts.meshes import make_mesh, own_mesh, stage_layout
from swarm_jax.errors import ConfigError
from swarm_jax.launcher.mesh_option import ONE_DEVICE, MeshShape
from swarm_jax.stage.blocks import unstack
from swarm_jax.stage.layout import placed
from swarm_jax.stage.memory import tree_bytes
from tests.models.architectures import CHANGES, small


@pytest.mark.parametrize("shape", [MeshShape(2, 2), MeshShape(1, 4), MeshShape(4, 1)])
@pytest.mark.parametrize("name", CHANGES)
def test_parameters_of_every_architecture_have_a_place(name, shape):
    config = small(name)
    stage = make_stage(config, 0, config.num_layers)
    shapes = jax.eval_shape(stage.init, 0)
    layout = stage_layout(config, shapes, make_mesh(shape, jax.devices()))
    held = tree_bytes(placed(shapes, layout.state))
    used = tree_bytes(placed(jax.eval_shape(unstack, shapes), layout.weights))
    whole = tree_bytes(shapes)
    assert whole / 4 <= held <= used <= whole
    assert (used == whole) == (shape.model == 1)


def test_matrices_that_divide_are_shared_out_evenly():
    config = small("grouped_padded")
    stage = make_stage(config, 0, config.num_layers)
    shapes = jax.eval_shape(stage.init, 0)
    layout = stage_layout(config, shapes, make_mesh(MeshShape(2, 2), jax.devices()))
    held = tree_bytes(placed(shapes, layout.state))
    assert held < 0.27 * tree_bytes(shapes)


def test_one_device_needs_no_layout():
    assert make_mesh(ONE_DEVICE, jax.devices()) is None
    assert own_mesh(ONE_DEVICE) is None
    assert stage_layout(small("default"), {}, None) is None


def test_a_peer_takes_all_devices_of_its_process():
    assert own_mesh(MeshShape(2, 2)).shape == {"data": 2, "model": 2}
    for shape in (MeshShape(1, 2), MeshShape(4, 2)):
        with pytest.raises(ConfigError, match="and this process sees 4 .cpu"):
            own_mesh(shape)
