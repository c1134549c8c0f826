"""The table at the end of a run."""

import io
import json

from rich.console import Console

from swarm_jax.launcher.summary import finish_summary, summary_table
from swarm_jax.metrics import MetricsWriter


def test_wall_time_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"steps": 5, "wall_s": 1.0, "extra": "kept"}))
    summary = finish_summary(tmp_path, 12.5)
    assert summary == {"steps": 5, "wall_s": 12.5, "extra": "kept"}
    assert json.loads(path.read_text()) == summary


def test_memory_of_all_processes_is_added(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"peak_rss_bytes": 1}))
    for name, size in (("trainer", 1), ("stage0-0", 5)):
        writer = MetricsWriter(tmp_path / "metrics" / f"{name}.jsonl")
        writer.write(step=1, peak_rss_bytes=size)
        writer.close()
    assert finish_summary(tmp_path, 2.0) == {
        "wall_s": 2.0,
        "processes": 2,
        "peak_rss_bytes": 5,
        "total_peak_rss_bytes": 6,
        "peak_device_bytes": None,
        "total_peak_device_bytes": None,
    }


def test_it_says_how_long_servers_took_to_be_ready(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    for name, ready_s in (("stage0-0", 5.0), ("stage1-0", 9.0), ("stage1-1", 8.0)):
        writer = MetricsWriter(tmp_path / "metrics" / f"{name}.jsonl")
        for step in (1, 2):
            writer.write(step=step, start_to_ready_s=ready_s)
        writer.close()
    assert finish_summary(tmp_path, 2.0)["start_to_ready_s"] == 8.0


def test_bigram_loss_stands_beside_validation_loss_and_absent_rows_are_left_out(
    tmp_path,
):
    summary = {
        "steps": 200,
        "validation_loss": 1.61803,
        "validation_loss/wiki": 3.14159,
        "bigram_loss": 2.71828,
        "microbatches_lost": 0,
        "final_train_loss": None,
        "wall_s": 61.0,
    }
    console = Console(file=io.StringIO(), width=200)
    console.print(summary_table(summary, tmp_path))
    lines = console.file.getvalue().splitlines()
    loss = next(i for i, line in enumerate(lines) if "validation loss" in line)
    assert "1.6180" in lines[loss]
    assert "wiki" in lines[loss + 1] and "3.1416" in lines[loss + 1]
    assert "bigram" in lines[loss + 2] and "2.7183" in lines[loss + 2]
    assert any("lost" in line and " 0 " in line for line in lines)
    assert any("61.0 s" in line for line in lines)
    assert any(str(tmp_path / "metrics") in line for line in lines)
    assert not any("train loss" in line for line in lines)
