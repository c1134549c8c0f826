"""Interleaved weighted round-robin, bans, pauses."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from swarm_jax.core.router import Router
from swarm_jax.core.throughput import ThroughputAverage


def make_router(*peers: str) -> Router:
    router = Router(ban_s=1.0, max_ban_s=30.0)
    router.update(peers)
    return router


def test_unmeasured_peers_take_turns():
    router = make_router("a", "b", "c")
    assert [router.pick(10, 0.0) for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


@given(st.lists(st.integers(1, 8), min_size=1, max_size=5))
def test_traffic_is_proportional_to_throughput(rates):
    router = make_router(*(f"peer{i}" for i in range(len(rates))))
    for i, rate in enumerate(rates):
        router.succeeded(f"peer{i}", 100 * rate, 100.0)
    rounds = 50
    picks = Counter(router.pick(10, 0.0) for _ in range(rounds * sum(rates)))
    for i, rate in enumerate(rates):
        assert abs(picks[f"peer{i}"] - rounds * rate) <= len(rates) + 1


def test_a_new_peer_is_tried_at_once_but_gets_no_backlog():
    router = make_router("old")
    router.succeeded("old", 100, 1.0)
    for _ in range(1000):
        router.pick(100, 0.0)
    router.update(["old", "new"])
    picks = [router.pick(100, 0.0) for _ in range(20)]
    assert "new" in picks[:2]
    assert 9 <= picks.count("new") <= 11


def test_bans_double_expire_and_end_with_a_success():
    router = make_router("a")
    router.failed("a", now_s=0.0)
    assert router.pick(1, 0.9) is None
    assert router.pick(1, 1.0) == "a"
    router.failed("a", now_s=1.0)
    assert router.pick(1, 2.9) is None
    assert router.pick(1, 3.0) == "a"
    router.succeeded("a", 1, 1.0)
    router.failed("a", now_s=10.0)
    assert router.pick(1, 11.0) == "a"


def test_a_lost_connection_with_many_in_flight_is_one_failure():
    router = make_router("a")
    for _ in range(12):
        router.failed("a", now_s=0.0)
    assert router.pick(1, 1.0) == "a"


def test_no_ban_is_longer_than_the_longest():
    router = make_router("a")
    for failure in range(2000):
        router.failed("a", now_s=30.0 * failure)
    assert router.pick(1, 30.0 * failure + 29.9) is None
    assert router.pick(1, 30.0 * failure + 30.0) == "a"


def test_a_banned_peer_that_returns_gets_no_backlog():
    router = make_router("a", "b")
    for peer in "ab":
        router.succeeded(peer, 100, 1.0)
    router.failed("a", now_s=0.0)
    assert {router.pick(100, 0.5) for _ in range(100)} == {"b"}
    router.pick(100, 2.0, exclude=["b"])
    for _ in range(60):
        router.succeeded("a", 100, 1.0)
    picks = [router.pick(100, 2.0) for _ in range(20)]
    assert 9 <= picks.count("a") <= 11


def test_after_a_ban_a_peer_gets_one_microbatch_until_it_has_proved_itself():
    router = make_router("a", "b")
    router.failed("a", now_s=0.0)
    assert [router.pick(1, 1.5) for _ in range(10)].count("a") == 1
    router.pause("a", until_s=1.6)  # busy is an answer, and no fault
    assert [router.pick(1, 1.7) for _ in range(10)].count("a") == 1
    router.succeeded("a", 1, 1.0)
    assert [router.pick(1, 1.8) for _ in range(10)].count("a") > 1


def test_an_answer_that_never_comes_does_not_keep_a_peer_out():
    router = make_router("a")
    router.failed("a", now_s=0.0)
    assert router.pick(1, 1.0) == "a"
    assert router.pick(1, 2.9) is None
    assert router.pick(1, 3.0) == "a"


def test_a_success_ends_a_ban_at_once():
    router = make_router("a")
    router.failed("a", now_s=0.0)
    router.succeeded("a", 1, 1.0)
    assert router.pick(1, 0.1) == "a"


def test_a_peer_that_fails_often_gets_less_traffic():
    router = make_router("good", "bad")
    for peer in ("good", "bad"):
        router.succeeded(peer, 100, 1.0)
    now_s = 0.0
    for _ in range(4):
        router.failed("bad", now_s)
        router.succeeded("bad", 100, 1.0)
    picks = [router.pick(100, now_s) for _ in range(100)]
    assert 0 < picks.count("bad") < 25


def test_a_paused_or_excluded_peer_is_passed_over_without_a_failure():
    router = make_router("a", "b")
    router.pause("a", until_s=5.0)
    assert {router.pick(1, 1.0) for _ in range(4)} == {"b"}
    assert router.pick(1, 1.0, exclude=["b"]) is None
    assert router.pick(1, 5.0, exclude=["b"]) == "a"


def test_peers_that_are_gone_are_not_picked():
    router = make_router("a", "b")
    router.update(["b"])
    assert {router.pick(1, 0.0) for _ in range(3)} == {"b"}
    assert make_router().pick(1, 0.0) is None


def test_throughput_average_is_unbiased_from_the_first_measurement():
    average = ThroughputAverage()
    assert average.tokens_per_s is None
    average.update(tokens=100, seconds=2.0)
    assert abs(average.tokens_per_s - 50.0) < 1e-9
    for _ in range(200):
        average.update(tokens=100, seconds=1.0)
    assert abs(average.tokens_per_s - 100.0) < 1e-6


def test_a_peer_that_compiled_at_first_gets_its_share_in_the_end():
    """Its first answers took 400 times as long as the others'."""
    router = make_router("a", "b")
    router.succeeded("b", 100, 0.1)
    for _ in range(4):
        router.succeeded("a", 100, 40.0)
    for _ in range(400):
        router.succeeded(router.pick(100, 0.0), 100, 0.1)
    picks = Counter(router.pick(100, 0.0) for _ in range(400))
    assert picks["a"] >= 100
