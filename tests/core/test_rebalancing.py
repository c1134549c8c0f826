"""Who changes the stage: nobody for nothing, and whoever must."""

import math
import random
from dataclasses import dataclass, replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from swarm_jax.config import RebalancingConfig
from swarm_jax.core.capacity import speeds_of, totals_of
from swarm_jax.core.rebalancing import (
    most_loaded,
    move_by_queue,
    rebalance,
    rescue,
)
from swarm_jax.core.reports import DRAINING, JOINING, OFFLINE, ONLINE

RULES = RebalancingConfig()
EXACT = RebalancingConfig(gain_threshold=0, measurement_error=0, same_speed=1)
TURNS = 12


@dataclass(frozen=True)
class Record:
    tokens_per_s: float = 100.0
    queue: int = 0
    state: str = ONLINE


def stages_of(*stages):
    """Equal peers by their number, unequal ones by their speeds."""
    names = iter(range(1000))
    return [
        {
            f"peer{next(names):03}": Record(speed)
            for speed in ([100.0] * peers if isinstance(peers, int) else peers)
        }
        for peers in stages
    ]


def totals(stages, work=None):
    work = work or [1.0] * len(stages)
    return totals_of(speeds_of(stages, work, same_speed=1.0), work)


def throughput(stages):
    return min(totals(stages))


def moved(stages, moves, state=ONLINE):
    stages = [dict(peers) for peers in stages]
    for move in moves:
        record = stages[move.source].pop(move.peer)
        stages[move.target][move.peer] = replace(record, state=state)
    return stages


def settled(stages, rules, turns=TURNS):
    """The stages after some turns, and the moves of the last two."""
    last = []
    for turn in range(turns):
        moves = rebalance(stages, rules, turn=turn)
        stages = moved(stages, moves)
        last = [*last, moves][-2:]
    return stages, [move for moves in last for move in moves]


def both_turns(stages, rules=RULES, **options):
    return [
        m for turn in (0, 1) for m in rebalance(stages, rules, turn=turn, **options)
    ]


STATES = st.sampled_from([ONLINE, ONLINE, ONLINE, JOINING, DRAINING, OFFLINE])
KINDS = st.sampled_from([0.0, 50.0, 100.0, 400.0])
RECORDS = st.builds(Record, KINDS, st.integers(0, 20), STATES)


@st.composite
def views(draw, records=RECORDS, max_peers=8, min_peers=0):
    sizes = draw(st.lists(st.integers(min_peers, max_peers), min_size=2, max_size=5))
    names = iter(draw(st.permutations([f"peer{i:02}" for i in range(sum(sizes))])))
    return [{next(names): draw(records) for _ in range(size)} for size in sizes]


EQUAL = views(st.builds(Record, st.just(100.0), st.integers(0, 20)), min_peers=1)
SERVING = views(st.builds(Record, st.floats(10, 1000), st.integers(0, 20)), 8, 1)


# The paper's


def test_the_least_loaded_stage_gives_its_least_busy_peer_to_the_most_loaded():
    stages = [
        {"a": Record(queue=5), "b": Record(queue=4)},
        {"c": Record(queue=2), "d": Record(queue=1), "e": Record(queue=1)},
        {"f": Record(queue=9)},
    ]
    move = move_by_queue(stages)
    assert (move.peer, move.source, move.target) == ("d", 1, 2)
    assert "stage 2" in move.reason


def test_load_is_the_time_that_the_queue_takes():
    fast = {"a": Record(400.0, queue=8), "b": Record(400.0, queue=8)}
    slow = {"c": Record(100.0, queue=4), "d": Record(100.0, queue=4)}
    assert move_by_queue([fast, slow]).source == 0


def test_equally_loaded_stages_keep_their_peers():
    assert move_by_queue([{"a": Record(queue=3)}, {"b": Record(queue=3)}]) is None


def test_a_stage_without_peers_is_the_most_loaded():
    assert move_by_queue(stages_of(3, 3, 0)).target == 2
    assert most_loaded(stages_of(3, 3, 0)) == 2


# Ours


def test_a_stage_that_lost_peers_gets_as_many_as_it_takes_at_once():
    moves = rebalance(stages_of(12, 12, 4, 12), RULES, turn=0)
    assert [move.target for move in moves] == [2] * 4
    assert {move.source for move in moves} == {0, 1}
    assert (
        throughput(
            moved(stages_of(12, 12, 4, 12), both_turns(stages_of(12, 12, 4, 12)))
        )
        == 1000
    )


def test_a_move_says_why_and_what_it_brings():
    (move,) = rebalance(stages_of(4, 2), RULES, turn=1) or rebalance(
        stages_of(4, 2), RULES, turn=0
    )
    assert move.gain == 0.5
    assert "from 200 to 300 tokens/s (+50.0%)" in move.reason


def test_who_is_on_the_way_counts_as_there():
    stages = stages_of(2, 4)
    moves = rebalance(stages, RULES, turn=1)
    assert len(moves) == 1
    on_the_way = moved(stages, moves, state=JOINING)
    assert both_turns(on_the_way) == []


def test_nobody_moves_where_the_slowest_stage_gains_nothing():
    assert both_turns(stages_of(3, 3, 4)) == []
    assert both_turns(stages_of(2, 2, 3)) == []


def test_two_equally_slow_stages_are_helped_together():
    assert len(both_turns(stages_of(3, 5, 3, 5))) == 2


def test_a_fast_peer_goes_where_it_fits():
    stages = stages_of([100.0, 100.0, 400.0, 400.0], [100.0, 100.0, 100.0])
    (move,) = rebalance(stages, RULES, turn=0)
    assert stages[0][move.peer].tokens_per_s in (100.0, 400.0)
    assert throughput(moved(stages, [move])) == 600.0


def test_of_equal_peers_the_least_busy_one_moves():
    stages = stages_of(2, 4)
    queues = dict(zip(stages[1], (3, 1, 0, 2), strict=True))
    stages[1] = {p: Record(queue=queue) for p, queue in queues.items()}
    (move,) = rebalance(stages, RULES, turn=1)
    assert queues[move.peer] == 0


def test_a_heavy_stage_gets_more_peers():
    stages, _ = settled(stages_of(4, 4, 4), EXACT)
    assert [len(peers) for peers in stages] == [4, 4, 4]
    work = [2.0, 1.0, 1.0]
    measured = [
        {p: Record(100.0 / work[s]) for p in peers} for s, peers in enumerate(stages)
    ]
    moves = both_turns(measured, EXACT, work=work)
    assert [move.target for move in moves] == [0, 0]


def test_a_rise_below_the_threshold_moves_nobody():
    stages = stages_of(9, 11)
    careful = replace(RULES, gain_threshold=0.2)
    assert both_turns(stages) and not both_turns(stages, careful)


def test_what_measurement_may_have_made_up_moves_nobody():
    """Three fast peers and nine slow ones: how much faster is not known that well."""
    stages = stages_of([100.0] * 8, [400.0, 400.0, 400.0, 100.0])
    assert not both_turns(stages, replace(RULES, measurement_error=0.05))
    assert both_turns(stages, replace(RULES, measurement_error=0.02))


def test_moves_that_would_not_pay_before_the_run_ends_are_not_made():
    stages = stages_of(2, 4)
    assert both_turns(stages, remaining_s=RULES.migration_s + 1)
    assert not both_turns(stages, remaining_s=RULES.migration_s - 1)


def test_what_moving_costs_meanwhile_is_weighed_against_the_gain():
    """The giver's surplus is still on its way: who leaves now is missed now."""
    stages = stages_of(3, 3)
    stages[0] |= {f"new{i}": Record(0.0, state=JOINING) for i in range(3)}
    stages[1] |= {"new too": Record(0.0, state=JOINING)}
    assert both_turns(stages, remaining_s=RULES.migration_s * 2.1)
    assert not both_turns(stages, remaining_s=RULES.migration_s * 1.9)


# Rescue


def test_a_stage_of_one_peer_gets_a_second_though_nothing_is_gained():
    stages = stages_of(1, 3, 1)
    slow = stages[2] = {"slow": Record(40.0), "slow too": Record(40.0)}
    moves = rescue(stages, RULES)
    assert [(move.source, move.target) for move in moves] == [(1, 0)]
    assert moves[0].gain == 0
    assert "stage 0 has one peer" in moves[0].reason
    assert len(slow) == 2


def test_a_stage_without_peers_gets_one_from_a_stage_of_two():
    (move,) = rescue(stages_of(2, 0, 1), RULES)
    assert (move.source, move.target, move.gain) == (0, 1, math.inf)


def test_nobody_is_made_the_last_of_his_stage_to_save_another():
    assert rescue(stages_of(1, 2), RULES) == []


def test_rescue_does_not_make_the_swarm_slower():
    assert rescue(stages_of([900.0], [100.0, 100.0, 100.0]), EXACT) == []


def test_who_is_on_the_way_has_been_sent_to_the_rescue():
    stages = stages_of(1, 4)
    stages[0]["new"] = Record(0.0, state=JOINING)
    assert rescue(stages, RULES) == []


# Properties


@given(views(), st.integers(0, 1))
@settings(deadline=None, derandomize=True)
def test_no_stage_is_emptied(stages, turn):
    paper = move_by_queue(stages)
    for moves in (rebalance(stages, RULES, turn=turn), [paper] if paper else []):
        for stage, peers in enumerate(stages):
            online = {p for p, record in peers.items() if record.state == ONLINE}
            gone = {move.peer for move in moves if move.source == stage}
            assert gone <= online
            assert online > gone or not online


@given(views(), st.integers(0, 1), st.randoms(use_true_random=False))
@settings(deadline=None, derandomize=True)
def test_every_peer_names_the_same_movers(stages, turn, chance):
    shuffled = [dict(chance.sample(list(p.items()), len(p))) for p in stages]
    assert rebalance(stages, RULES, turn=turn) == rebalance(shuffled, RULES, turn=turn)
    assert rescue(stages, RULES) == rescue(shuffled, RULES)
    assert move_by_queue(stages) == move_by_queue(shuffled)


@given(views(), st.integers(0, 1))
@settings(deadline=None, derandomize=True)
def test_no_gain_is_negative_and_no_move_makes_the_swarm_slower(stages, turn):
    moves = rebalance(stages, EXACT, turn=turn)
    assert all(move.gain >= 0 for move in moves)
    before = min(totals_of(speeds_of(stages, [1] * len(stages), 1), [1] * len(stages)))
    after = speeds_of(stages, [1] * len(stages), 1)
    for move in moves:
        after[move.target][move.peer] = after[move.source].pop(move.peer)
    assert min(totals_of(after, [1] * len(stages))) >= before * (1 - 1e-6)


@given(EQUAL)
@settings(deadline=None, derandomize=True)
def test_equal_peers_reach_the_optimal_allocation_and_stay(stages):
    peers = sum(map(len, stages))
    stages, last = settled(stages, RULES)
    assert last == []
    assert throughput(stages) == 100.0 * (peers // len(stages))


@given(SERVING)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_unequal_peers_come_to_rest_near_the_optimal_allocation(stages):
    """No allocation is faster than the mean of the stages."""
    spread, last = settled(stages, EXACT, turns=60)
    assert last == []
    fastest = max(r.tokens_per_s for peers in stages for r in peers.values())
    if all(len(peers) > 2 for peers in spread):
        mean = sum(totals(stages)) / len(stages)
        assert throughput(spread) >= mean - fastest
    assert throughput(spread) >= throughput(stages)


@given(EQUAL, st.integers(0, 2**32))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_an_hour_of_noise_moves_nobody(stages, seed):
    stages, _ = settled(stages, RULES)
    chance = random.Random(seed)
    for turn in range(int(3600 / RULES.period_s)):
        noisy = [
            {
                peer: Record(100.0 * chance.gauss(1.0, 0.05), chance.randrange(12))
                for peer in peers
            }
            for peers in stages
        ]
        assert rebalance(noisy, RULES, turn=turn) == []
        assert rescue(noisy, RULES) == rescue(stages, RULES) == []


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_an_hour_of_noise_moves_nobody_of_two_kinds_of_device(seed):
    stages, _ = settled(
        stages_of([400.0, 400.0, 100.0], [100.0] * 8, [400.0] * 3), RULES
    )
    chance = random.Random(seed)
    for turn in range(int(3600 / RULES.period_s)):
        noisy = [
            {
                peer: replace(r, tokens_per_s=r.tokens_per_s * chance.gauss(1.0, 0.05))
                for peer, r in peers.items()
            }
            for peers in stages
        ]
        assert rebalance(noisy, RULES, turn=turn) == []


@st.composite
def neighbours(draw):
    """A view, and one that differs by one record: changed, gone, or elsewhere."""
    stages = draw(views())
    stage = draw(st.integers(0, len(stages) - 1))
    peer = draw(st.sampled_from(sorted(stages[stage]) or ["new"]))
    other = [dict(peers) for peers in stages]
    other[stage].pop(peer, None)
    if draw(st.booleans()):
        elsewhere = draw(st.integers(0, len(stages) - 1))
        other[elsewhere][peer] = draw(RECORDS)
    return stages, other


WITH_THE_FAST_ONE = stages_of([800.0, 100.0, 100.0, 100.0], [100.0] * 5)
WITHOUT = [{p: WITH_THE_FAST_ONE[0][p] for p in list(WITH_THE_FAST_ONE[0])[1:]}]
WITHOUT += WITH_THE_FAST_ONE[1:]


@given(neighbours(), st.integers(0, 1))
@example((WITH_THE_FAST_ONE, WITHOUT), 0)
@example((WITH_THE_FAST_ONE, WITHOUT), 1)
@settings(max_examples=500, deadline=None, derandomize=True)
def test_views_that_differ_by_one_record_never_undo_each_other(pair, turn):
    here, there = (
        {(move.source, move.target) for move in rebalance(view, EXACT, turn=turn)}
        for view in pair
    )
    assert not here & {(target, source) for source, target in there}


def test_without_turns_they_would():
    assert rebalance(WITH_THE_FAST_ONE, EXACT, turn=0)
    assert rebalance(WITHOUT, EXACT, turn=1)


@given(neighbours(), st.integers(0, 1))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_a_rescue_is_never_undone_by_who_sees_one_record_less(pair, turn):
    rescued = {(move.source, move.target) for move in rescue(pair[0], RULES)}
    there = rebalance(pair[1], EXACT, turn=turn)
    assert not rescued & {(move.target, move.source) for move in there}
