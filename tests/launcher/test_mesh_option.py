"""Which meshes a user may ask for, and what is said to the others."""

import pytest

from models.config import GPTConfig
from scripts import launch, run_server
from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags, mesh_option
from swarm_jax.launcher.mesh_option import MeshShape
from swarm_jax.launcher.swarm import LocalSwarm


def parse(text):
    parser = flags.Parser(prog="test")
    mesh_option.add_argument(parser)
    return parser.parse_args(["--mesh", text]).mesh


def make_config(microbatch_size, offload):
    model = GPTConfig(
        num_layers=2, model_dim=8, num_heads=2, ffn_dim=8, sequence_length=4
    )
    config = ExperimentConfig(run_id="test", steps=1, model=model)
    config.swarm.microbatch_size = microbatch_size
    config.tuning.offload_optimizer = offload
    return config


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("model=2", MeshShape(data=1, model=2)),
        ("data=4", MeshShape(data=4, model=1)),
        ("model=2,data=3", MeshShape(data=3, model=2)),
    ],
)
def test_axes_are_named_in_any_order(text, shape):
    assert parse(text) == shape == parse(str(shape))
    assert shape.devices == shape.data * shape.model


@pytest.mark.parametrize(
    "text", ["", "2", "model", "model=", "heads=2", "model=-1", "model=2,model=2"]
)
def test_what_names_no_axis_is_refused(text):
    with pytest.raises(ConfigError, match="is not data=N or model=N"):
        parse(text)


def test_an_axis_has_a_device():
    with pytest.raises(ConfigError, match="'data=0': use 1 or more"):
        parse("data=0,model=2")


def test_a_microbatch_must_divide_over_data():
    mesh_option.check(MeshShape(data=2), make_config(4, offload=False))
    with pytest.raises(ConfigError, match="has 3 sequences .* Use --mesh model=2"):
        mesh_option.check(MeshShape(data=2), make_config(3, offload=False))


def test_an_optimizer_in_main_memory_needs_one_device():
    mesh_option.check(MeshShape(), make_config(1, offload=True))
    with pytest.raises(ConfigError, match="works with one accelerator"):
        mesh_option.check(MeshShape(model=2), make_config(1, offload=True))


@pytest.mark.parametrize(
    ("found", "device", "message"),
    [
        (2, "gpu", "takes 4 devices, and this process sees 2 .gpu.*CUDA_VISIBLE_DEV"),
        (8, "gpu", "takes 4 devices, and this process sees 8 .gpu.*CUDA_VISIBLE_DEV"),
        (1, "cpu", "sees 1 .cpu.*JAX_NUM_CPU_DEVICES=4"),
    ],
)
def test_a_mesh_takes_all_devices(found, device, message):
    with pytest.raises(ConfigError, match=message):
        mesh_option.check_devices(MeshShape(2, 2), found, device)


def test_without_a_mesh_one_of_many_devices_is_taken():
    mesh_option.check_devices(MeshShape(), 8, "gpu")


def test_each_server_of_a_run_is_given_its_mesh_and_its_devices(tmp_path):
    class Started:
        def start(self, name, command, environment):
            return command, environment

    def start(**options):
        where = {"workdir": tmp_path, "cache_dir": tmp_path}
        swarm = LocalSwarm(experiment=[], num_stages=1, steps=1, **where, **options)
        return swarm._start_server(Started(), [], stage=0, replica=0)

    command, environment = start(mesh=MeshShape(model=2))
    assert command[command.index("--mesh") + 1] == "data=1,model=2"
    assert environment["JAX_NUM_CPU_DEVICES"] == "2"
    command, environment = start()
    assert "--mesh" not in command and "JAX_NUM_CPU_DEVICES" not in environment


def test_scripts_refuse_at_once(tmp_path):
    arguments = ["--config", "configs/tiny.py", "--workdir", str(tmp_path / "run")]
    arguments += ["--mesh", "data=2", "--config.swarm.microbatch_size=1"]
    for main in (launch.main, run_server.main):
        with pytest.raises(ConfigError, match="do not divide among 2 devices"):
            main(arguments)
    assert not (tmp_path / "run").exists()
