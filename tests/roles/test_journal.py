"""What a leader records of steps that it did not begin."""

import asyncio

import pytest

from swarm_jax.core.ledger import Audit
from swarm_jax.core.reports import ONLINE, CommitRecord, Report
from swarm_jax.roles.journal import Journal
from swarm_jax.roles.peers import SwarmView
from swarm_jax.roles.relay import Answer
from swarm_jax.sim.clock import run_virtual
from swarm_jax.sim.swarm import Records

ALL_ONCE = Audit(6, 6, 0, 0)


def report_of(commit: CommitRecord) -> Report:
    step = commit.step + 1
    return Report("stage0-0", 0, ONLINE, step, lineage="", last_commit=commit)


def make_journal(config, steps: Records) -> Journal:
    return Journal(
        config,
        SwarmView(config, None, ()),
        steps=steps,
        swarm=Records(),
        learning_rate=lambda step: 0.0,
    )


def test_a_step_that_was_taken_over_is_timed_from_then_on(config):
    steps = Records()

    async def main():
        journal = make_journal(config, steps)
        journal.begin_term(1)
        journal.feeding(2)
        await asyncio.sleep(30.0)  # deposed; others lead
        journal.begin_term(3)
        await asyncio.sleep(1.0)
        journal.closing(4, loss_sum=6.0, loss_tokens=2, ledgers=ALL_ONCE)
        journal.collected([report_of(CommitRecord(4, 1.0))])

    run_virtual(main())
    (record,) = steps
    assert (record["step"], record["train_loss"]) == (5, 3.0)
    assert (record["step_s"], record["tokens_per_s"]) == (1.0, 2.0)
    assert record["time_s"] == 31.0


def test_a_step_that_was_to_be_validated_is_recorded_by_who_leads_no_more(config):
    config.validation.every_steps = 5
    steps = Records()

    async def main():
        journal = make_journal(config, steps)
        journal.begin_term(1)
        journal.closing(4, loss_sum=6.0, loss_tokens=2, ledgers=ALL_ONCE)
        journal.collected([report_of(CommitRecord(4, 1.0))])
        assert journal.validation_due and not steps
        journal.end_term()
        assert not journal.validation_due

    run_virtual(main())
    (record,) = steps
    assert record["step"] == 5 and "validation_loss" not in record


def test_it_says_with_which_step_a_run_goes_on(config, caplog):
    """After a wait, and in the middle of a run that others have begun; once."""

    async def main():
        journal = make_journal(config, Records())
        journal.begin_term(1)
        journal.feeding(0)
        assert not caplog.messages
        journal.waiting("Waiting: stage 0: no live peer")
        journal.feeding(0)
        journal.feeding(1)
        journal.begin_term(3)
        journal.feeding(4)
        journal.feeding(5)

    run_virtual(main())
    assert caplog.messages[1:] == [
        "the run goes on with step 1",
        "the run goes on with step 5",
    ]


def test_a_step_says_how_long_its_microbatches_took(config):
    steps = Records()

    async def main():
        journal = make_journal(config, steps)
        journal.begin_term(1)
        for step in range(2):
            journal.feeding(step)
            for index in range(101):
                elapsed_s = step + index / 100
                journal.answered(index, 1, Answer([], 0.0, [{"elapsed_s": elapsed_s}]))
            journal.closing(step, loss_sum=6.0, loss_tokens=2, ledgers=ALL_ONCE)
            journal.collected([report_of(CommitRecord(step, 1.0))])

    run_virtual(main())
    found = [(r["microbatch_p50_s"], r["microbatch_p95_s"]) for r in steps]
    assert found == [pytest.approx((0.5, 0.95)), pytest.approx((1.5, 1.95))]


def test_a_step_that_was_fed_ahead_is_timed_from_the_commit_before_it(config, caplog):
    """So no second is in two steps. What its microbatches took is its own."""
    config.swarm.delayed_updates = True
    steps = Records()

    async def main():
        journal = make_journal(config, steps)
        await asyncio.sleep(1.0)
        journal.begin_term(1)
        journal.feeding(0)
        for step in range(3):
            await asyncio.sleep(1.0)
            journal.waiting("Waiting: stage 0: no live peer")
            journal.closing(step, loss_sum=6.0, loss_tokens=2, ledgers=ALL_ONCE)
            journal.feeding_ahead(step + 1)
            for index in range(2):
                trace = [{"elapsed_s": step + 1.0}]
                journal.answered_ahead(index, 1, Answer([], 0.0, trace))
            await asyncio.sleep(1.0 + step)
            journal.collected([report_of(CommitRecord(step, 1.0))])

    run_virtual(main())
    assert [record["step_s"] for record in steps] == [2.0, 3.0, 4.0]
    assert [record.get("microbatch_p50_s") for record in steps] == [None, 1.0, 2.0]
    goes_on = [text for text in caplog.messages if "goes on" in text]
    assert goes_on == [f"the run goes on with step {step}" for step in (1, 2, 3)]


def test_a_step_ends_when_its_commit_is_answered_and_the_next_begins(config):
    """That one is still being fed then, to the end of the round."""
    config.swarm.delayed_updates = True
    steps = Records()

    async def main():
        journal = make_journal(config, steps)
        journal.begin_term(1)
        journal.feeding(0)
        for step in range(3):
            await asyncio.sleep(1.0)
            journal.closing(step, loss_sum=6.0, loss_tokens=2, ledgers=ALL_ONCE)
            journal.feeding_ahead(step + 1)
            journal.committed(CommitRecord(step, 1.0))
            await asyncio.sleep(2.0)
            journal.collected([report_of(CommitRecord(step, 1.0))])

    run_virtual(main())
    assert [record["step_s"] for record in steps] == [1.0, 3.0, 3.0]
    assert [record["time_s"] for record in steps] == [1.0, 4.0, 7.0]


def test_a_step_is_recorded_once_though_a_commit_was_answered_in_vain(config):
    """Who answered had not made it, or died: the step is closed again."""
    steps = Records()

    async def main():
        journal = make_journal(config, steps)
        journal.begin_term(1)
        journal.feeding(0)
        for norm in (1.0, 2.0):
            await asyncio.sleep(1.0)
            journal.closing(0, loss_sum=6.0, loss_tokens=2, ledgers=ALL_ONCE)
            journal.committed(CommitRecord(0, norm))
        journal.collected([report_of(CommitRecord(0, 2.0))])
        assert journal.totals.steps == 1

    run_virtual(main())
    (record,) = steps
    assert (record["step_s"], record["gradient_norm"]) == (2.0, 2.0)


def test_a_step_that_was_to_be_skipped_and_had_been_applied_has_no_record(config):
    """Another trainer had committed it, which was not known; its loss still is not."""
    steps = Records()

    async def main():
        journal = make_journal(config, steps)
        journal.begin_term(2)
        journal.feeding(3)
        journal.skipping(3)
        journal.collected([report_of(CommitRecord(3, 1.0))])
        await asyncio.sleep(1.0)
        journal.feeding(4)
        await asyncio.sleep(1.0)
        journal.closing(4, loss_sum=6.0, loss_tokens=2, ledgers=ALL_ONCE)
        journal.collected([report_of(CommitRecord(4, 1.0))])
        assert (journal.totals.steps, journal.totals.skipped_steps) == (1, 0)

    run_virtual(main())
    assert [(record["step"], record["step_s"]) for record in steps] == [(5, 1.0)]


def test_a_step_that_another_trainer_fed_ahead_is_timed(config):
    """It died; this one closes the step before, then that one, and feeds nothing."""
    config.swarm.delayed_updates = True
    steps = Records()

    async def main():
        journal = make_journal(config, steps)
        await asyncio.sleep(1.0)
        journal.begin_term(2)
        for step in (3, 4):
            await asyncio.sleep(1.0)
            journal.closing(step, loss_sum=6.0, loss_tokens=2, ledgers=ALL_ONCE)
            journal.collected([report_of(CommitRecord(step, 1.0))])

    run_virtual(main())
    assert [record["step_s"] for record in steps] == [1.0, 1.0]
