"""A head tied to the embedding of another stage, in float32; tests/float64 is exact."""

import jax
import numpy as np
import pytest

from models.functional import to_layers
from scripts.wiring import stage_layers
from swarm_jax.sim.clock import run_virtual
from tests.float64.plain import train_plainly

TOLERANCE = 2e-4
"""Of the largest value of an array: gradients are added up in another order."""


@pytest.mark.parametrize("peers", [[2, 1], [1, 2, 2]])
def test_a_swarm_trains_the_model_of_one_process(config, make_swarm, peers):
    config.model.tied_head = True
    config.swarm.num_stages = len(peers)
    losses, layers = train_plainly(config)
    swarm = make_swarm(config, peers)
    assert run_virtual(swarm.run()).microbatches.exact
    np.testing.assert_allclose(
        [record["train_loss"] for record in swarm.steps], losses, rtol=1e-5
    )
    tables = []
    for peer, server in swarm.servers.items():
        first_layer = stage_layers(config)[server.state.stage].first_layer
        ours = jax.device_get(to_layers(swarm.computes[peer].params, first_layer))
        jax.tree.map(check_close, ours, {name: layers[name] for name in ours})
        tables += [ours[n]["embedding"] for n in ("embed", "tied") if n in ours]
    assert len(tables) == peers[0] + peers[-1]
    for table in tables[1:]:
        np.testing.assert_array_equal(table, tables[0])


def check_close(ours, theirs):
    np.testing.assert_allclose(
        ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max()
    )
