"""Speed between the ends of steps, from made-up records."""

import json

import pytest

from swarm_jax.errors import ConfigError
from swarm_jax.launcher.relay_figures import (
    CpuTimes,
    Window,
    full_windows,
    relay_figures,
)


def write(path, records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def snapshots(step, start_s, answered):
    return [{"time_s": start_s + i, "step": step, "answered": n} for i, n in answered]


def swarm(workdir, *steps):
    records = [record for step in steps for record in step]
    records = [record | {"microbatches_per_step": 100} for record in records]
    write(workdir / "metrics" / "swarm.jsonl", records)


def test_the_ends_of_steps_and_the_first_steps_are_left_out(tmp_path):
    filling = [(0, 0), (1, 2), (2, 10), (3, 40), (4, 90), (5, 97), (6, 100)]
    swarm(tmp_path, *(snapshots(step, 10 * step, filling) for step in range(5)))
    windows = full_windows(tmp_path, in_flight=8)
    assert windows == [Window(32, 34, 80), Window(42, 44, 80)]


@pytest.mark.parametrize("answered", [[], [(0, 0), (1, 50), (2, 100)]])
def test_steps_that_are_too_short_are_no_measurement(tmp_path, answered):
    swarm(tmp_path, *(snapshots(step, 10 * step, answered) for step in range(5)))
    with pytest.raises(ConfigError, match="target_batch_size"):
        full_windows(tmp_path, in_flight=8)


def test_processor_time_is_read_between_readings():
    cpu = CpuTimes([0.0, 10.0, 20.0], [0.0, 10.0, 40.0])
    assert cpu.within(Window(5.0, 15.0, 1)) == pytest.approx(5 + 15)


def test_figures_of_a_run(tmp_path):
    summary = {
        "activation_bytes_per_token_per_boundary": 600.0,
        "gradient_bytes_per_token_per_boundary": 400.0,
        "same_host_share": 1.0,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    steps = [
        {
            "step": step,
            "tokens": 1000,
            "step_s": 100.0 if step <= 3 else 5.0,
            "microbatch_p50_s": 9.0 if step <= 3 else step / 100,
            "microbatch_p95_s": 0.2,
        }
        for step in range(1, 7)
    ]
    write(tmp_path / "metrics" / "trainer.jsonl", steps)
    found = relay_figures(
        tmp_path,
        [Window(10, 12, 60), Window(20, 22, 40)],
        CpuTimes([0.0, 100.0], [0.0, 200.0]),
        microbatch_tokens=10_000,
        boundaries=2,
    )
    assert found == pytest.approx(
        {
            "tokens_per_s": 100 * 10_000 / 4,
            "closing_tokens_per_s": 200.0,
            "bytes_per_token_per_boundary": 1000.0,
            "same_host_share": 1.0,
            # 8 s of processors; 1,000,000 tokens over 2 boundaries are 2 GB.
            "cpu_s_per_gb": 4.0,
            "microbatch_p50_ms": 50.0,
            "microbatch_p95_ms": 200.0,
        }
    )
