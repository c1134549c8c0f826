"""scripts.benchmark: what it refuses, and the store that it measures."""

import json

import pytest

from scripts import benchmark
from scripts.store_speed import store_speed
from swarm_jax.data import speed
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


def test_the_data_layer_is_measured_and_compared_with_the_need(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(speed, "_FEED_S", 0.01)
    monkeypatch.setattr(speed, "SAMPLE_BYTES", 100_000)
    report = tmp_path / "report.json"
    more = ["--config.data.max_corpus_bytes=300000", "--config.data.bpe_vocab_size=300"]
    assert benchmark.main(["data", "--repeats", "2", "--json", str(report), *more]) == 0
    found = json.loads(report.read_text())
    assert found["needed_tokens_per_s"] == 100 * 5000 / 2
    assert found["tokenisation_mb_per_s"].keys() == {"bytes", "bpe"}
    assert found["feeding_tokens_per_s"].keys() == {"stream", "documents"}
    for part in ("tokenisation_mb_per_s", "feeding_tokens_per_s"):
        for speeds in found[part].values():
            assert len(speeds) == 2 and min(speeds) > 0
    assert "needed: 250,000 tokens/s" in " ".join(capsys.readouterr().out.split())


def test_the_store_is_measured_on_a_state_of_about_the_size_asked_for(tmp_path):
    found = store_speed(tmp_path / "store", state_mb=3, repeats=2)
    assert found["state_mb"] == pytest.approx(3, abs=1)
    for speeds in (found["save_mb_per_s"], found["restore_mb_per_s"]):
        assert len(speeds) == 2 and min(speeds) > 0
