"""A run without faults is plain training, and the harness sees when it is not."""

import pytest


@pytest.mark.parametrize("peers", [[1], [1, 2], [2, 1, 2]])
def test_a_swarm_without_faults_is_plain_training(play, peers):
    outcome = play(peers)
    assert outcome.verdict == "right"
    assert len(outcome.states) == sum(peers)
