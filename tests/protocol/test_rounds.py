"""Rounds and promises: what an older round sent is refused (design, section 5)."""

import asyncio

import pytest

from swarm_jax.core.ids import Round
from swarm_jax.core.stage_state import StageState
from swarm_jax.net.local import OneMessage
from swarm_jax.roles.leadership import Leadership
from swarm_jax.roles.lease import Lease
from swarm_jax.roles.standby import Standby

LAG_S = 2.0


@pytest.fixture
def switch_off(monkeypatch):
    """``switch_off(letters)`` of rules that guard each other."""

    def promises_nothing(state, round_):
        return True

    def says_nothing(*ledger):
        return ""

    def without_names(compare):
        return lambda one, other: compare((one[0], one[2]), (other[0], other[2]))

    def switch_off(letters: str) -> None:
        if "F" in letters:
            monkeypatch.setattr(StageState, "promise_to", promises_nothing)
        if "L" in letters:
            monkeypatch.setattr("swarm_jax.roles.preparing.ledger_digest", says_nothing)
            monkeypatch.setattr(StageState, "ledger_digest", says_nothing)
        if "U" in letters:
            for name in ("__lt__", "__gt__", "__ge__", "__eq__", "__ne__"):
                compare = without_names(getattr(tuple, name))
                monkeypatch.setattr(Round, name, compare)

    return switch_off


@pytest.mark.parametrize(
    ("off", "verdict", "dropped"),
    [
        ("", "right", 0),
        ("F", "right", 1),
        ("L", "right", 0),
        ("FL", "wrong parameters", 0),
    ],
)
def test_work_of_an_older_round_is_never_counted(
    play, switch_off, off, verdict, dropped
):
    """F, L. stage1-0 refuses a microbatch, stage1-1 counts it; a copy is on its way.

    It comes to stage1-0 between the collect that closes the step and the prepare. Each
    rule guards the other: without promises (F) it is counted, the exact prepare (L)
    refuses and one sum is dropped; without both it is in the gradient twice.
    """
    switch_off(off)

    async def a_copy_comes_late(run):
        link = "stage0-0", "stage1-0"
        run.wires.harm_next(*link, OneMessage(duplicate=True, delay_s=0.1))
        run.at("request_arrived", "relay", "stage1-0", lambda: run.refuse("stage1-0"))
        await run.happens("answered", "relay", "stage1-0")
        await asyncio.sleep(0.05)
        run.wires.refusing.clear()
        run.wires.cut(*link, silent=True)
        await run.happens("answered", "collect", "stage1-0")
        run.wires.heal(*link)
        run.wires.delay("trainer-a", "stage1-0", 0.1)

    outcome = play([1, 2], a_copy_comes_late)
    assert outcome.verdict == verdict
    assert outcome.count("request_sent", "drop") == dropped


@pytest.mark.parametrize(
    ("off", "verdict"), [("", "right"), ("F", "right"), ("FL", "wrong parameters")]
)
def test_a_drop_of_an_older_round_is_refused(play, switch_off, off, verdict):
    """F, L. stage1-0 drops its sum and counts again; a copy of the drop comes late.

    It comes between a collect and its prepare. Without promises (F) the new sum is
    lost, which the exact prepare (L) sees; without both the step is closed without it.
    """
    switch_off(off)

    async def a_copy_comes_late(run):
        link = "trainer-a", "stage1-0"
        answers = "stage0-0", "stage1-0"
        run.at("answered", "relay", "stage1-0", lambda: run.cut(*answers), nth=3)
        await run.happens("request_sent", "drop", "trainer-a")
        run.heal(*answers)
        run.cut("stage0-0", "stage1-1", silent=False)
        run.wires.harm_next(*link, OneMessage(duplicate=True, delay_s=2.0))
        await run.happens("request_sent", "prepare", "trainer-a")
        assert run.state("stage1-0").ledger.counted
        run.wires.delay(*link, 2.0)
        await run.happens("request_arrived", "prepare", "stage1-0")
        run.wires.delay(*link, 0.0)

    outcome = play([1, 2], a_copy_comes_late, ban_s=0.01)
    assert outcome.verdict == verdict
    assert outcome.count("request_arrived", "drop", "stage1-0") == 2


@pytest.mark.parametrize(
    ("off", "verdict", "void"),
    [
        ("", "right", 0),
        ("U", "right", 1),
        ("L", "right", 0),
        ("UL", "wrong parameters", 0),
    ],
)
def test_rounds_of_equal_numbers_are_ordered(
    play, switch_off, caplog, off, verdict, void
):
    """U. The leader dies before a prepare; two trainers with equal numbers follow.

    trainer-b sees all sums and closes. trainer-c does not reach stage1-1, and feeds
    what that counted to stage1-0 at the same time. Without the trainers' names in the
    rounds both are obeyed: the exact prepare (L) makes the round void; without both
    rules the microbatches are in the gradient twice.
    """
    switch_off(off)

    async def two_follow(run):
        run.network.records.lag_s = LAG_S
        await run.happens("request_sent", "prepare", "trainer-a")
        run.kill_trainer()
        run.cut("trainer-c", "stage1-1", silent=False)
        await asyncio.sleep(run.config.tuning.lease_s + LAG_S)
        run.start_trainer("trainer-b")
        run.start_trainer("trainer-c")
        await run.happens("request_sent", "prepare", "trainer-b")
        run.wires.delay("trainer-b", "stage1-0", 0.1)

    outcome = play([1, 2], two_follow)
    assert outcome.verdict == verdict
    assert caplog.text.count("is void, no result from age1-") == void


def test_a_refused_leader_steps_down(rule, play):
    """u. Two trainers take number 1 while the directory lags; the one that leads dies.

    Off: the refused one goes on with its old rounds, and nobody leads for ever.
    """
    rule.off(Leadership, "check_promise", lambda self, promise: None)

    async def the_leader_dies(run):
        run.network.records.lag_s = LAG_S
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.kill_trainer(run.state("stage1-0").promise.trainer)

    outcome = play([1, 1], the_leader_dies, trainers=2)
    assert outcome.verdict == rule.gives("right", off="not finished")


def test_a_refused_leader_takes_a_number_above_every_promise(rule, play, caplog):
    """u. The leader of term 41 dies; its claim has expired when another one starts.

    Off: the new one tries every number from 1 on, and is refused each time.
    """
    rule.off(Lease, "saw", lambda self, number: None)

    async def the_leader_of_a_late_term_dies(run):
        await run.swarm.make_trainer("trainer-0")._lease.release(40)
        await run.until(lambda: run.state("stage1-0").step == 1)
        assert run.state("stage1-0").promise.number == 41
        run.kill_trainer()
        await asyncio.sleep(run.config.tuning.lease_s)
        run.start_trainer("trainer-b")

    outcome = play([1, 1], the_leader_of_a_late_term_dies)
    assert outcome.verdict == "right"
    refused = caplog.text.count("another trainer leads")
    assert refused == rule.gives(1, off=40)


def test_only_who_was_there_can_be_gone(rule, play):
    """Two trainers lose each other, and nothing else, for the rest of the run.

    The second one leads from then on. Off: they depose each other for ever.
    """

    async def believe_it(self, trainer):
        pass

    rule.off(Standby, "_until_there", believe_it)

    async def they_lose_each_other(run):
        await asyncio.sleep(2 * run.config.tuning.lease_s)
        run.cut("trainer-a", "trainer-b", silent=False)

    outcome = play(
        [1, 1], they_lose_each_other, trainers=2, lease_s=2.0, steps=15, deadline_s=5.5
    )
    assert outcome.verdict == rule.gives("right", off="not finished")
    turns = outcome.run.leaders
    assert turns[:2] == ["trainer-a", "trainer-b"]
    assert (len(turns) == 2) == rule.is_on


def test_trainers_change_places_at_most_once_per_lost_connection(play):
    """Their link breaks every two seconds, but is there for less than a lease."""

    async def the_link_flickers(run):
        while True:
            run.cut("trainer-a", "trainer-b", silent=False)
            run.heal("trainer-a", "trainer-b")
            await asyncio.sleep(run.config.tuning.lease_s / 3)

    outcome = play([1, 1], the_link_flickers, trainers=2, steps=50)
    assert outcome.verdict == "right"
    assert outcome.run.leaders == ["trainer-a"]


def test_who_stands_by_remembers_the_numbers_it_has_seen(play, caplog):
    """u. trainer-b sees the claim of trainer-a, which dies; then the claim expires.

    Its first number is above the one that peers have promised themselves to.
    """

    async def the_leader_dies(run):
        await run.until(lambda: run.state("stage1-0").promise.number == 1)
        run.start_trainer("trainer-b")
        await run.until(lambda: run.state("stage1-0").step == 1)
        run.kill_trainer()

    outcome = play([1, 1], the_leader_dies)
    assert outcome.verdict == "right"
    assert outcome.run.state("stage1-0").promise[:2] == (2, "trainer-b")
    assert "another trainer leads" not in caplog.text
