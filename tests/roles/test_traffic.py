"""What a run says of the bytes between stages."""

from swarm_jax.sim.clock import run_virtual


def test_each_direction_is_counted_per_token_and_boundary(config, make_swarm):
    config.steps = 2
    config.swarm.wire, config.swarm.gradient_wire = "int8", "bfloat16"
    summary = run_virtual(make_swarm(config, [1, 2, 1]).run()).summary()
    codes, scale, target = config.model.model_dim, 2, 4
    there, back = (
        summary[f"{name}_bytes_per_token_per_boundary"]
        for name in ("activation", "gradient")
    )
    assert (there, back) == (codes + scale + target, 2 * config.model.model_dim)
