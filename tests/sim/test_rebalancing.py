"""The paper's ablation: whether the traces are fit for it, and what is shown of it."""

import io
import json
from functools import partial

import pytest
from rich.console import Console

from scripts import simulate
from swarm_jax.errors import ConfigError
from swarm_jax.sim.market import SpotMarket
from swarm_jax.sim.rebalancing import ABLATION, PAPER, cases, outcome_of, rows, table
from swarm_jax.sim.replay import Scenario


@pytest.fixture(scope="module")
def outcomes():
    names = ("none", "T=60", "ours")
    return {
        name: [outcome_of(Scenario(), name, seed) for seed in (0, 1)] for name in names
    }


def test_traces_are_such_that_the_paper_s_strategies_get_what_it_reports(outcomes):
    found = {row["strategy"]: row for row in rows(outcomes)}
    assert 75 <= found["none"]["overall_pct"] <= 90
    assert 96 <= found["T=60"]["overall_pct"] <= 98.5


def test_ours_loses_half_of_what_the_paper_s_loses_with_a_third_of_the_moves(outcomes):
    _, paper, ours = rows(outcomes)
    assert ours["overall_pct"] >= 98.5
    assert 100 - ours["overall_pct"] < 0.6 * (100 - paper["overall_pct"])
    assert ours["last_hour_pct"] > paper["last_hour_pct"] + 2
    assert ours["moves_per_hour"] < paper["moves_per_hour"] / 3


def test_the_table_shows_the_paper_s_figures_as_recalled(outcomes):
    text = io.StringIO()
    Console(file=text, width=80).print(table(rows(outcomes)))
    assert "recalled" in text.getvalue()
    for figure in PAPER["T=60"]:
        assert str(figure) in text.getvalue()


def test_rows_and_picture_are_written(tmp_path, monkeypatch, capsys):
    short = Scenario(market=SpotMarket(hours=1.0, peers=20))
    monkeypatch.setattr(simulate, "Scenario", partial(type(short), market=short.market))
    found, picture = tmp_path / "rows.json", tmp_path / "docs" / "picture.png"
    simulate.main(
        ["rebalancing", "--seeds=1", "--more", f"--json={found}", f"--plot={picture}"]
    )
    written = json.loads(found.read_text())
    assert [row["strategy"] for row in written] == list(cases(short))
    assert tuple(row["strategy"] for row in written[:4]) == ABLATION
    for row in written:
        assert row["overall_pct"] == row["first_hour_pct"] == row["last_hour_pct"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "newcomers placed" in capsys.readouterr().out


def test_a_number_of_seeds_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="--seeds 0: use 1 or more"):
        simulate.main(["rebalancing", "--seeds=0"])
