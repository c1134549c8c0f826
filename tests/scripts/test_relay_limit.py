"""The stages chained in one process: what goes through is what one process computes."""

import json

import jax
import numpy as np
import pytest

from scripts import relay_limit
from scripts.relay_chain import Chain
from swarm_jax.config import load_config

TOY = [
    "--config.model.num_layers=4",
    "--config.model.model_dim=16",
    "--config.model.num_heads=2",
    "--config.model.ffn_dim=32",
    "--config.model.sequence_length=8",
    "--config.tuning.microbatches_in_flight=3",
]


def test_every_microbatch_adds_its_gradient_in_every_stage():
    config = load_config("configs/relay.py", [*TOY, "--config.swarm.num_stages=3"])
    chain = Chain(config)

    def sums_after(microbatches):
        assert chain.run(microbatches=microbatches) == microbatches
        sums = jax.tree.leaves([stage.gradient_sum for stage in chain.stages])
        return [np.array(leaf) for leaf in sums]

    for one, five in zip(sums_after(1), sums_after(4), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(five, 5 * one, rtol=1e-5, atol=1e-7)


def test_the_report(tmp_path):
    path = tmp_path / "limit.json"
    arguments = ["--config", "configs/relay.py", *TOY, "--seconds", "0.2"]
    relay_limit.main([*arguments, "--device", "cpu", "--json", str(path)])
    report = json.loads(path.read_text())
    assert report["tokens_per_s"] > 0
    # int8: 16 codes and a scale of 2 bytes, there and back.
    assert report["device_to_host_bytes_per_token"] == pytest.approx(2 * 18)
