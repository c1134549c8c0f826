"""scripts.benchmark: what it refuses, and the store that it measures."""

import pytest

from scripts import benchmark
from scripts.store_speed import store_speed
from swarm_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["local", "--repeats", "0"], "--repeats 0"),
        (["local", "--config.steps=3"], "the first 3 are not counted"),
        (["checkpoints", "--state_mb", "100", "0"], "--state_mb 0"),
        (["checkpoints", "--config.swarm.num_stages=1"], "a move needs two stages"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        benchmark.main([*arguments])


def test_the_store_is_measured_on_a_state_of_about_the_size_asked_for(tmp_path):
    found = store_speed(tmp_path / "store", state_mb=3, repeats=2)
    assert found["state_mb"] == pytest.approx(3, abs=1)
    for speeds in (found["save_mb_per_s"], found["restore_mb_per_s"]):
        assert len(speeds) == 2 and min(speeds) > 0
