"""Targets without loss: the swarm divides by what plain training divides by."""

import jax
import numpy as np
import pytest

from models.functional import to_layers
from scripts.wiring import make_compute, make_control, stage_layers
from swarm_jax.core.ledger import Audit
from swarm_jax.data.dataset import open_dataset
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.data import Microbatch, RandomTokens
from swarm_jax.sim.swarm import SimulatedSwarm
from swarm_jax.stage.whole_model import make_validation


class HalfMasked(RandomTokens):
    """Two of the six microbatches of a step, and one for validation, carry no loss."""

    def microbatch(self, step: int, index: int) -> Microbatch:
        whole = super().microbatch(step, index)
        if index not in (0, 4):
            return whole
        return Microbatch(whole.inputs, np.full_like(whole.targets, -1), 0)

    def validation_sets(self):
        return {
            metric: [self.validation_microbatch(name, index) for index in range(2)]
            for name, metric in self._config.validation.metrics.items()
        }


def documents(config, folder):
    """Packed documents, shorter and longer than a sequence of 4 tokens."""
    for name, count in (("corpus", 60), ("other", 20)):
        (folder / name).mkdir()
        for i in range(count):
            (folder / name / f"{i}.txt").write_text(f"{i}{name}"[: i % 7])
    config.data.corpus = f"files:{folder}/corpus"
    config.data.packing = "documents"
    config.validation.sets = (f"other=files:{folder}/other",)
    return open_dataset(config, folder / "cache")


def half_masked(config, folder):
    config.validation.sets = ("other=stdlib",)
    return HalfMasked(config)


@pytest.mark.parametrize("make_data", [half_masked, documents])
def test_a_swarm_trains_what_plain_training_does(config, make_data, tmp_path):
    data = make_data(config, tmp_path)
    swarm = SimulatedSwarm(
        config.check(),
        data=data,
        make_compute=lambda stage: make_compute(
            config, stage, inline=True, duration_s=lambda operation: 0.01
        ),
        peers_per_stage=[2, 1, 2],
    )
    totals = run_virtual(swarm.run())
    count = config.microbatches_per_step
    assert totals.microbatches == Audit(
        count * config.steps, count * config.steps, 0, 0
    )

    functions, init_optimizer, step = make_control(config)
    params = functions.init(config.seed)
    state = init_optimizer(params)
    for number in range(config.steps):
        batch = [data.microbatch(number, index) for index in range(count)]
        inputs_NL = np.concatenate([b.inputs for b in batch])
        targets_NL = np.concatenate([b.targets for b in batch])
        params, state, loss, _ = step(params, state, inputs_NL, targets_NL)
        record = swarm.steps[number]
        assert record["train_loss"] == pytest.approx(float(loss), rel=1e-5)
        assert record["tokens"] == (targets_NL >= 0).sum() < targets_NL.size
    for metric, microbatches in data.validation_sets().items():
        expected = make_validation(functions.loss, microbatches)(params)
        assert swarm.steps[-1][metric] == pytest.approx(expected, rel=1e-5)
    assert totals.summary()["validation_loss/other"] == record["validation_loss/other"]

    layers = jax.device_get(to_layers(params, 0))
    for peer, server in swarm.servers.items():
        first_layer = stage_layers(config)[server.state.stage].first_layer
        ours = to_layers(swarm.computes[peer].params, first_layer)
        for name, tree in ours.items():
            leaves = jax.tree.leaves(tree), jax.tree.leaves(layers[name])
            for a, b in zip(*leaves, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
