"""The PyTorch control as a user starts it, on a few kilobytes of text."""

import json
import random

import pytest

from scripts import train_pytorch, train_single
from swarm_jax.errors import ConfigError
from swarm_jax.metrics import read_records

CONFIG = """
from models.config import GPTConfig
from swarm_jax.config import DataConfig, ExperimentConfig, ValidationConfig


def get_config():
    config = ExperimentConfig(
        run_id="small",
        steps=4,
        model=GPTConfig(
            num_layers=2, model_dim=8, num_heads=2, ffn_dim=16, sequence_length=16
        ),
        data=DataConfig(corpus="files:{corpus}", target_batch_size=4),
        validation=ValidationConfig(sequences=4, every_steps=2),
    )
    config.swarm.microbatch_size = 2
    config.swarm.num_stages = 1
    config.optimizer.warmup_steps = 1
    return config
"""


@pytest.fixture
def arguments(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(30):
        words = random.Random(i).choices(["swarm", "stage", "peer", "token"], k=60)
        (corpus / f"{i}.txt").write_text(" ".join(words))
    config = tmp_path / "small.py"
    config.write_text(CONFIG.format(corpus=corpus))
    return [
        *("--config", str(config), "--cache_dir", str(tmp_path / "cache")),
        *("--workdir", str(tmp_path / "run"), "--device", "cpu"),
    ]


def test_delayed_updates_are_refused(arguments):
    with pytest.raises(ConfigError, match="scripts.train_single, which has them"):
        train_pytorch.main([*arguments, "--config.swarm.delayed_updates"])


def test_it_trains_and_writes_the_metrics_of_a_swarm(arguments, tmp_path, capsys):
    train_pytorch.main(arguments)
    run = tmp_path / "run"
    records = list(read_records(run / "metrics" / "trainer.jsonl"))
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert records[0]["learning_rate"] == 0.0
    for record in records:
        assert record["tokens"] == 64
        assert record["train_loss"] > 0 and record["gradient_norm"] > 0
        assert record["tokens_per_s"] == pytest.approx(64 / record["step_s"])
        assert ("validation_loss" in record) == (record["step"] % 2 == 0)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["validation_loss"] == records[-1]["validation_loss"]
    assert summary["bigram_loss"] > 0 and summary["parameters"] > 0
    assert summary["peak_rss_bytes"] >= records[-1]["peak_rss_bytes"] > 1e8
    assert "torch" in json.loads((run / "config.json").read_text())["versions"]
    assert "step 4/4" in capsys.readouterr().out


def test_parity_is_reported(arguments, tmp_path, capsys):
    report = tmp_path / "parity.json"
    train_pytorch.main([*arguments, "--parity", "--steps", "3", "--json", str(report)])
    parity = json.loads(report.read_text())
    assert parity["max_loss_diff"] < 1e-4
    assert parity["max_grad_diff"] < 1e-4
    assert len(parity["jax_losses"]) == len(parity["pytorch_losses"]) == 3
    assert "max_loss_diff" in capsys.readouterr().out


def test_masked_targets_and_further_sets_give_what_jax_gives(arguments, tmp_path):
    for i in range(300):
        (tmp_path / "corpus" / f"short{i}.txt").write_text(f"short {i}")
    more = ["--config.data.packing=documents"]
    more.append("--config.validation.sets=code=stdlib")
    more.append("--config.data.max_corpus_bytes=20000")
    train_pytorch.main([*arguments, *more])
    ours = list(read_records(tmp_path / "run" / "metrics" / "trainer.jsonl"))
    train_single.main([*arguments, *more])
    theirs = list(read_records(tmp_path / "run" / "metrics" / "trainer.jsonl"))
    assert any(record["tokens"] < 64 for record in ours)
    for a, b in zip(ours, theirs, strict=True):
        assert a["tokens"] == b["tokens"]
        losses = {name for name in a if "loss" in name}
        assert losses == {name for name in b if "loss" in name}
        for name in losses:
            assert a[name] == pytest.approx(b[name], rel=1e-5)
    assert "validation_loss/code" in ours[-1]


def test_a_gpu_that_is_not_there_is_named(arguments, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cuda13"):
        train_pytorch.main([*arguments[:-1], "cuda13"])


def test_no_steps_to_compare_are_refused(arguments):
    with pytest.raises(ConfigError, match="--steps 0: use 1 or more"):
        train_pytorch.main([*arguments, "--parity", "--steps", "0"])
