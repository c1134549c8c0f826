"""A run without faults is plain training; the rules' table names tests that exist."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
DOCUMENT = FOLDER.parents[1] / "docs" / "protocol.md"


@pytest.mark.parametrize("peers", [[1], [1, 2], [2, 1, 2]])
def test_a_swarm_without_faults_is_plain_training(play, peers):
    outcome = play(peers)
    assert outcome.verdict == "right"
    assert len(outcome.states) == sum(peers)


def test_the_rules_table_names_tests_that_exist():
    table = DOCUMENT.read_text().split("`test_...`", 1)[1].split("\n\n", 1)[0]
    named = {name for row in table.splitlines() for name in _tests_of(row)}
    sources = "".join(path.read_text() for path in FOLDER.glob("test_*.py"))
    assert len(named) > 25
    assert named <= set(re.findall(r"def test_(\w+)", sources))


def _tests_of(row: str) -> list[str]:
    cells = row.split("|")
    return re.findall(r"`(\w+)`", cells[2]) if len(cells) > 2 else []
