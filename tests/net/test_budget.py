"""The budget: never exceeded, never lost, and no peer can take it all."""

from hypothesis import given
from hypothesis import strategies as st

from swarm_jax.net.budget import RESERVE_SHARE, SMALL_BYTES, Budget

TOTAL = 1024 * 1024
steps = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(1, TOTAL),
        st.sampled_from("request answer".split()),
    )
    | st.integers(0, 20),
    max_size=60,
)


@given(steps)
def test_what_is_taken_is_bounded_and_comes_back(steps):
    budget, rooms = Budget(TOTAL), []
    for step in steps:
        if isinstance(step, int):
            for room, _ in rooms[step : step + 1]:
                room.release()
                room.release()
            del rooms[step : step + 1]
            continue
        peer, size, kind = step
        room = getattr(budget, kind)(peer, size)
        if room is not None:
            rooms.append((room, size))
        assert budget.used_bytes == sum(size for _, size in rooms)
        assert budget.used_bytes <= TOTAL + TOTAL // RESERVE_SHARE
    for room, _ in rooms:
        room.release()
    assert budget.used_bytes == 0
    assert not budget._by_peer


@given(st.integers(SMALL_BYTES + 1, TOTAL // 2))
def test_a_greedy_peer_leaves_as_much_as_it_takes(size):
    budget = Budget(TOTAL)
    while budget.request("greedy", size):
        pass
    left = TOTAL - budget.used_bytes
    assert left + size >= budget.used_bytes > 0
    assert budget.request("another", left)


def test_a_lone_peer_may_send_half_at_once_and_so_may_the_next():
    budget = Budget(TOTAL)
    assert budget.request("one", TOTAL // 2)
    assert budget.request("one", TOTAL // 4) is None
    assert budget.request("two", TOTAL // 2)
    assert budget.request("three", TOTAL // 2) is None


def test_small_messages_fit_when_it_is_full():
    budget = Budget(TOTAL)
    assert budget.request("one", TOTAL // 2)
    assert budget.request("two", TOTAL // 2)
    assert budget.request("leader", SMALL_BYTES)
    assert budget.request("one", SMALL_BYTES) is None
