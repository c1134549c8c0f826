"""Means over seeds, pages and pictures of a sweep's runs."""

import pytest

from swarm_jax.config import load_config
from swarm_jax.launcher.sweep_plot import plot
from swarm_jax.launcher.sweep_results import UNITS, Spread, markdown, read_rows
from swarm_jax.launcher.variations import Variation
from swarm_jax.metrics import SingleRun

CONFIG = load_config("configs/tiny.py")
WAYS = ("activation", "gradient")


@pytest.fixture
def make_run(tmp_path):
    """Writes a run of ten steps whose loss ends at ``loss``."""

    def make(label, name, loss, validated=True, **summary):
        folder = tmp_path / name
        run = SingleRun(folder, steps=10)
        for step in range(1, 11):
            record = {"train_loss": loss + (10 - step) / 10}
            if validated and step % 5 == 0:
                record["validation_loss"] = record["train_loss"] + 0.5
            # The first three steps compile.
            step_s = 60.0 if step <= 3 else 0.5
            run.add_step(step=step, step_s=step_s, tokens=100, **record)
        run.finish(**summary)
        return Variation(label, name, (), CONFIG), folder

    return make


def test_runs_of_one_label_are_one_row(make_run, tmp_path):
    wires = {f"{way}_bytes_per_token_per_boundary": 64.0 for way in WAYS}
    runs = [
        make_run("b", "b1", 2.0, parameters=10, **wires),
        make_run("a", "a1", 1.0, validated=False),
        make_run("b", "b2", 3.0, parameters=10, **wires),
        (Variation("b", "b3", (), CONFIG), tmp_path / "not_done"),
    ]
    b, a = read_rows(runs)
    assert (b.label, a.label) == ("b", "a")
    assert b.folders == (str(tmp_path / "b1"), str(tmp_path / "b2"))
    assert b.train_loss.mean == pytest.approx(2.5)
    assert b.train_loss.deviation == pytest.approx(0.5**0.5)
    assert b.validation_loss.mean == pytest.approx(3.0)
    assert b.tokens_per_s == pytest.approx(200)
    assert (b.bytes_there, b.bytes_back, b.parameters) == (64.0, 64.0, 10)
    assert a.validation_loss is None and a.train_loss == Spread(1.0, None)
    assert (a.bytes_there, a.bytes_back, a.parameters) == (None, None, None)


def test_the_page_shows_what_is_not_known_as_such(make_run):
    page = markdown(read_rows([make_run("long " * 30, "a", 1.0, validated=False)]))
    _, _, row, *units = page.splitlines()
    assert units == ["", UNITS]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[1:-1] == [("long " * 30).strip(), "1", "1.0000", "-", "200", *"---"]


@pytest.mark.parametrize("validated", [True, False])
def test_equal_runs_give_an_equal_picture(make_run, tmp_path, validated):
    runs = [make_run("a", "a1", 1.0), make_run("a", "a2", 1.1)]
    runs.append(make_run("b", "b1", 2.0, validated=validated))
    rows = read_rows(runs)
    for name in ("one.png", "new/two.png"):
        plot(rows, tmp_path / name)
    one, two = tmp_path / "one.png", tmp_path / "new" / "two.png"
    assert one.read_bytes().startswith(b"\x89PNG")
    assert one.read_bytes() == two.read_bytes()
    plot(rows[:1], two)
    assert one.read_bytes() != two.read_bytes()
