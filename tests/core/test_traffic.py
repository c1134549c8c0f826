from swarm_jax.core.traffic import Traffic

FEED = {"stage": 0, "sent_bytes": 800, "received_bytes": 0}
ACTIVATIONS = "activation_bytes_per_token_per_boundary"
SHARE = "same_host_share"
GRADIENTS = "gradient_bytes_per_token_per_boundary"


def test_bytes_are_per_token_and_boundary_and_the_trainers_hop_is_none():
    traffic = Traffic()
    near = {"stage": 1, "sent_bytes": 1000, "received_bytes": 600}
    far = {"stage": 2, "sent_bytes": 3000, "received_bytes": 200}
    traffic.add([FEED, near, far], tokens=100)
    assert traffic.figures() == {ACTIVATIONS: 20.0, GRADIENTS: 4.0, SHARE: 0}
    traffic.add([FEED, near, far], tokens=100)
    assert traffic.figures() == {ACTIVATIONS: 20.0, GRADIENTS: 4.0, SHARE: 0}


def test_what_passed_no_network_is_marked():
    traffic = Traffic()
    far = {"sent_bytes": 700, "received_bytes": 100, "same_host": "yes"}
    near = {"sent_bytes": 150, "received_bytes": 50, "same_host": True}
    traffic.add([FEED, far, near], tokens=10)
    assert traffic.figures() == {ACTIVATIONS: 42.5, GRADIENTS: 7.5, SHARE: 0.2}


def test_nothing_is_known_before_anything_crossed_a_boundary():
    traffic = Traffic()
    traffic.add([FEED], tokens=100)
    assert traffic.figures() == {ACTIVATIONS: None, GRADIENTS: None, SHARE: None}


def test_what_a_peer_wrote_wrong_is_left_out():
    traffic = Traffic()
    right = {"sent_bytes": 10, "received_bytes": 5}
    wrong = ({}, *(right | {"sent_bytes": bad} for bad in ("9", -1, 1.5, None, True)))
    traffic.add([FEED, *wrong, right], tokens=1)
    assert traffic == Traffic(tokens=1, activation_bytes=10, gradient_bytes=5)
