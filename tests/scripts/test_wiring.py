"""What peers of one process share is the same for all of them."""

import jax
import numpy as np

from models.config import GPTConfig
from scripts import initial_weights
from scripts.wiring import (
    make_compute,
    make_control,
    make_functions,
    make_programs,
)
from swarm_jax.config import ExperimentConfig, load_config


def initial(seed, stage):
    model = GPTConfig(
        num_layers=4, model_dim=8, num_heads=2, ffn_dim=16, sequence_length=4
    )
    config = ExperimentConfig(run_id="test", steps=1, seed=seed, model=model)
    config.swarm.num_stages = 4
    params = make_compute(config, stage, inline=True).params
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def test_replicas_begin_alike_but_no_two_stages_or_seeds():
    ours = initial(seed=0, stage=1)
    assert ours.tobytes() == initial(seed=0, stage=1).tobytes()
    assert not np.array_equal(ours, initial(seed=1, stage=1))
    assert not np.array_equal(ours, initial(seed=0, stage=2))


def test_body_stages_that_are_cut_at_each_boundary_share_their_programs():
    model = GPTConfig(
        num_layers=8,
        model_dim=8,
        num_heads=2,
        ffn_dim=16,
        sequence_length=4,
        boundaries=(2, 4, 6),
        boundary="maxout",
        boundary_factor=4,
    )
    config = ExperimentConfig(run_id="test", steps=1, model=model)
    config.swarm.num_stages = 4
    config.swarm.microbatch_size = 3
    config.swarm.layers_per_stage = (2, 2, 2, 2)
    first, body, other, last = (make_programs(config, stage) for stage in range(4))
    assert body is other
    narrow = (("float32", (3, 4, 2)),)
    assert first.gradient_specs == body.input_specs == last.input_specs == narrow
    config.swarm.layers_per_stage = (1, 2, 2, 3)
    first, body, other, last = (make_programs(config, stage) for stage in range(4))
    assert body is other
    assert body.input_specs == body.gradient_specs == (("float32", (3, 4, 8)),)
    config.swarm.layers_per_stage = (2, 2, 1, 3)
    _, body, other, _ = (make_programs(config, stage) for stage in range(4))
    assert body is not other


def test_a_last_stage_starts_with_the_imported_table_of_a_tied_head(
    experiment, make_checkpoint, tmp_path
):
    tied = "--config.model.tied_head=True"
    table = make_checkpoint(tied)["embed"]["embedding"]
    config = load_config(experiment, [tied])
    names = "layers.1", "tied", "head"
    folder = tmp_path / "run" / "checkpoints"
    params = initial_weights.reader(config, names, folder)()
    np.testing.assert_array_equal(params["tied"]["embedding"], table)
    assert jax.tree.structure(params) == jax.tree.structure(
        jax.eval_shape(make_functions(config, 1).init, 0)
    )


def test_wires_are_simulated_between_the_ends_of_a_tied_head(experiment):
    config = load_config(experiment, ["--config.model.tied_head=True"])
    config.swarm.wire = "float32"
    tokens_BL = np.arange(32, dtype=np.int32).reshape(2, 16)
    plain, *_ = make_control(config)
    simulated, *_ = make_control(config, simulate_wire=True)
    params = plain.init(0)
    expected, found = (
        jax.jit(jax.value_and_grad(functions.loss))(params, tokens_BL, tokens_BL)
        for functions in (plain, simulated)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        found,
        expected,
    )
