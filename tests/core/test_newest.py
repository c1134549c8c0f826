"""How far a run has been, as far as anybody has said."""

from swarm_jax.core.newest import Newest
from swarm_jax.core.reports import CommitRecord


def test_a_newer_run_is_further_than_any_step_of_an_older_one():
    newest = Newest()
    for seen in ((0, 3), (0, 5), (0, 4)):
        newest.saw(*seen)
    assert newest.position == (0, 5)
    newest.saw(1, 0)
    newest.saw(0, 6)
    assert newest.position == (1, 0)


def test_how_the_newest_state_was_committed_may_be_known_before_it_is_seen():
    newest, record = Newest(), CommitRecord(4, 1.5)
    newest.saw(0, 4)
    newest.knows(0, record)
    assert newest.last_commit is None
    newest.saw(0, 5)
    assert newest.last_commit == record


def test_the_commit_of_another_run_or_step_is_not_that_of_the_newest_state():
    newest = Newest()
    newest.knows(0, CommitRecord(4, 1.5))
    newest.saw(1, 5)
    newest.knows(1, CommitRecord(3, 1.5))
    assert newest.last_commit is None
