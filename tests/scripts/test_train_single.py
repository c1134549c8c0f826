import json

import numpy as np
import pytest

from scripts import train_single
from swarm_jax.errors import ConfigError
from swarm_jax.metrics import MetricsWriter, read_records


@pytest.fixture
def arguments(tmp_path):
    """A run of seconds on a corpus of its own."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(20):
        (corpus / f"{number}.txt").write_text(f"{number} green bottles. " * 40)
    overrides = {
        "steps": 3,
        "model.num_layers": 2,
        "model.model_dim": 8,
        "model.num_heads": 2,
        "model.ffn_dim": 16,
        "model.sequence_length": 16,
        "optimizer.warmup_steps": 1,
        "data.corpus": f"files:{corpus}",
        "data.target_batch_size": 4,
        "swarm.microbatch_size": 2,
        "swarm.num_stages": 1,
        "validation.every_steps": 2,
        "validation.sequences": 4,
    }
    return [
        *("--config", "configs/tiny.py"),
        *("--workdir", str(tmp_path / "run")),
        *("--cache_dir", str(tmp_path / "cache")),
        *("--save_parameters", str(tmp_path / "parameters.npz")),
        *(f"--config.{name}={value}" for name, value in overrides.items()),
    ]


def test_writes_metrics_summary_config_and_parameters(arguments, tmp_path, capsys):
    earlier = MetricsWriter(tmp_path / "run" / "metrics" / "trainer.jsonl")
    earlier.write(step=1)
    earlier.close()
    train_single.main(arguments)
    records = list(read_records(tmp_path / "run" / "metrics" / "trainer.jsonl"))
    assert [record["step"] for record in records] == [1, 2, 3]
    assert [record["learning_rate"] for record in records] == pytest.approx(
        [0.0, 3e-3, 1.5e-3]
    )
    assert ["validation_loss" in record for record in records] == [False, True, True]
    for record in records:
        assert record["tokens"] == 4 * 16
        assert record["tokens_per_s"] == pytest.approx(64 / record["step_s"])
        assert 0 < record["gradient_norm"] < 10
        assert record["peak_rss_bytes"] > 1e8 and "peak_device_bytes" not in record
        assert 4 < record["train_loss"] < 7

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 3
    assert summary["final_train_loss"] == records[-1]["train_loss"]
    assert summary["validation_loss"] == records[-1]["validation_loss"]
    assert 0 < summary["bigram_loss"] < 6
    assert summary["peak_rss_bytes"] >= records[-1]["peak_rss_bytes"]
    steady_s = sum(record["step_s"] for record in records[1:])
    assert summary["tokens_per_s"] == pytest.approx(2 * 64 / steady_s)

    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["experiment"]["steps"] == 3
    assert {"python", "jax", "optax"} <= config["versions"].keys()

    with np.load(tmp_path / "parameters.npz") as parameters:
        assert parameters["embed/embedding"].shape == (384, 8)
        assert parameters["layers.1/attention/qkv/kernel"].shape == (8, 24)
        count = sum(parameters[name].size for name in parameters)
    assert count == summary["parameters"]
    assert "step 3/3" in capsys.readouterr().out


def test_masked_targets_and_further_validation_sets(arguments, tmp_path, capsys):
    for number in range(100):
        (tmp_path / "corpus" / f"short{number}.txt").write_text(f"short {number}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("Lorem ipsum. " * 40)
    (tmp_path / "other" / "y.txt").write_text("Dolor sit amet. " * 40)
    more = [
        "--config.data.packing=documents",
        f"--config.validation.sets=other=files:{tmp_path}/other",
    ]
    train_single.main([*arguments, *more])
    run = tmp_path / "run"
    records = list(read_records(run / "metrics" / "trainer.jsonl"))
    assert all(0 < record["tokens"] <= 4 * 16 for record in records)
    assert any(record["tokens"] < 4 * 16 for record in records)
    assert all(4 < record["train_loss"] < 7 for record in records)
    summary = json.loads((run / "summary.json").read_text())
    other = summary["validation_loss/other"]
    assert other == records[-1]["validation_loss/other"] != summary["validation_loss"]
    assert 4 < other < 7 and f"(other {other:.4f})" in capsys.readouterr().out


def test_a_typo_is_answered_before_anything_is_written(arguments, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        train_single.main([*arguments, "--config.stepps=4"])
    assert not (tmp_path / "run").exists()


def test_simulated_wires_change_what_is_trained_and_are_asked_for(arguments, tmp_path):
    wires = ["--config.swarm.num_stages=2", "--config.swarm.wire=int8"]
    losses = []
    for more in ([], ["--simulate_wire"]):
        train_single.main([*arguments, *wires, "--config.steps=1", *more])
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        losses.append(summary["final_train_loss"])
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.01)
