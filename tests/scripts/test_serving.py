"""What a stage server says of its start."""

import pytest

from scripts.serving import READY, times_to_ready
from swarm_jax.roles.arrival import Parts


def test_the_time_to_ready_is_divided():
    times = times_to_ready(Parts(compile_s=6.0, download_s=3.0, busy_s=7.0), 9.5)
    assert times == {
        "start_to_ready_s": 9.5,
        "start_compile_s": 6.0,
        "start_download_s": 3.0,
        "start_rest_s": pytest.approx(2.5),
    }
    line = READY.format(**times)
    assert line.startswith("ready 9.5 s after its start: 6.0 s to compile, 3.0 s to")
