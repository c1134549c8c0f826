"""Bans: they double, end, and are forgotten; no flood of names makes them grow."""

from hypothesis import given
from hypothesis import strategies as st

from swarm_jax.core.bans import MAX_REMEMBERED, Bans

gaps_s = st.lists(st.floats(0, 100), min_size=1, max_size=30)


def test_bans_double_and_are_bounded():
    bans, now_s = Bans(1.0, 6.0), 10.0
    for expected_s in (1, 2, 4, 6, 6):
        assert bans.ban("peer", now_s) == expected_s
        now_s += expected_s
        assert bans.left_s("peer", now_s) == 0


def test_offences_during_a_ban_are_one_offence():
    bans = Bans(1.0, 6.0)
    bans.ban("peer", 0.0)
    assert bans.ban("peer", 0.25) == 0.75
    assert bans.ban("peer", 1.0) == 2.0


def test_a_quiet_peer_starts_anew():
    bans = Bans(1.0, 6.0)
    bans.ban("peer", 0.0)
    assert bans.ban("peer", 6.9) == 2.0
    assert bans.ban("peer", 8.9 + 6.0) == 1.0


def test_others_are_not_banned():
    bans = Bans(1.0, 6.0)
    bans.ban("peer", 0.0)
    assert bans.left_s("other", 0.0) == 0


@given(gaps_s)
def test_a_ban_is_never_longer_than_the_longest_nor_shorter_than_the_first(gaps_s):
    bans, now_s = Bans(0.5, 8.0), 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        was_banned_s = bans.left_s("peer", now_s)
        banned_s = bans.ban("peer", now_s)
        assert banned_s == bans.left_s("peer", now_s)
        if was_banned_s:
            assert banned_s == was_banned_s
        else:
            assert 0.5 <= round(banned_s, 6) <= 8.0
        assert bans.left_s("peer", now_s + 8.1) == 0


def test_a_flood_of_names_forgets_those_that_end_first():
    bans = Bans(1.0, 6.0)
    bans.ban("first", 0.0)
    for number in range(MAX_REMEMBERED):
        bans.ban(f"peer{number}", 0.5)
    assert len(bans) == MAX_REMEMBERED
    assert bans.left_s("first", 0.75) == 0
    assert bans.left_s("peer0", 0.75) == 0.75
