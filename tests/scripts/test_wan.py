"""scripts.benchmark wan and close: their arithmetic, and one small run of each."""

import json

import pytest

from scripts import benchmark
from scripts.benchmark_options import MODELS
from scripts.close_speed import bound_s, bytes_on_wire, device_figures
from scripts.wan import CASES
from swarm_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wan", "--config.steps=9"], "wan runs no experiment"),
        (["wan", "--stages", "1"], "--stages 1: a link needs"),
        (["wan", "--rtt_ms", "-1"], "--rtt_ms -1: use 0 or more"),
        (["wan", "--tflops", "0"], "--tflops 0: use a positive number"),
        (["wan", "--dilation", "0.5"], "--dilation 0.5: use 1 or more"),
        (["close", "--peers", "1"], "--peers 1: a mean needs two"),
        (["close", "--parameters_mb", "0"], "--parameters_mb 0: use 1 or more"),
        (["close", "--link_mbps", "0"], "--link_mbps 0: use a positive number"),
        (["delayed", "--config.steps=9"], "delayed runs no experiment"),
        (["delayed", "--peers", "1"], "--peers 1: a mean needs two"),
        (["delayed", "--microbatches", "6"], "--microbatches 6: use a power of two"),
        (["delayed", "--steps", "0"], "--steps 0: use 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        benchmark.main(arguments)


def test_the_cases_are_the_papers():
    """Times of a tensor on the wire: 13, 67, 201 and 34 ms."""
    assert tuple(CASES) == MODELS
    wire_ms = [round(1e3 * case.wire_s) for case in CASES.values()]
    assert wire_ms == [13, 67, 201, 34]


def test_a_roofline_is_of_whatever_takes_longer():
    small, large = CASES["base"], CASES["ours"]
    assert small.busy_s(15) == 2 * small.wire_s
    assert large.busy_s(15) == large.compute_s(15) == pytest.approx(0.124)
    assert large.round_trip_s(15, 0.1, 3) == pytest.approx(
        4 * large.wire_s + 3 * 0.1 + 3 * 0.124
    )


def test_two_peers_send_their_vector_once_and_four_half_as_much_again():
    assert bound_s(125e6, 2, 1e9) == pytest.approx(1.0)
    assert bound_s(125e6, 4, 1e9) == pytest.approx(1.5)
    sizes = {wire: bytes_on_wire(4000, wire) for wire in ("float32", "float16", "int8")}
    assert sizes == pytest.approx({"float32": 4000, "float16": 2000, "int8": 1015.625})


def test_busy_accelerators_are_counted(tmp_path, capsys):
    report = tmp_path / "wan.json"
    arguments = ["wan", "--models", "base", "--rtt_ms", "5", "--tflops", "0.5"]
    more = ["--stages", "2", "--dilation", "2", "--seconds", "2", "--in_flight", "6"]
    assert benchmark.main([*arguments, *more, "--json", str(report)]) == 0
    [row] = json.loads(report.read_text())["rows"]
    assert row["bound"] == "compute" and row["roofline"] == 1.0
    assert row["microbatches_measured"] > 0
    assert 0 < row["utilisation"] <= 1.1
    assert row["recalled"] is None
    assert "base" in capsys.readouterr().out


def test_rounds_are_held_against_the_links_bound(tmp_path):
    report = tmp_path / "close.json"
    arguments = ["close", "--parameters_mb", "4", "--peers", "2", "--wires", "int8"]
    more = ["--repeats", "1", "--link_mbps", "50", "--json", str(report)]
    assert benchmark.main([*arguments, *more]) == 0
    found = json.loads(report.read_text())
    [row] = found["reduce"]
    assert row["ratio_to_bound"] > 0.9
    assert row["bytes_per_peer"] == pytest.approx(1_015_625, rel=0.1)
    assert 0 < row["largest_error"] < 0.1
    assert found["device_times"][0]["update_s"][0] > 0


def test_steps_are_timed_with_delayed_updates_and_without(tmp_path):
    report = tmp_path / "delayed.json"
    arguments = ["delayed", "--models", "base", "--rtt_ms", "0", "--repeats", "1"]
    size = ["--parameters_mb", "4", "--microbatches", "8", "--steps", "1"]
    slow = ["--tflops", "0.5", "--link_mbps", "50", "--dilation", "1"]
    assert benchmark.main([*arguments, *size, *slow, "--json", str(report)]) == 0
    [row] = json.loads(report.read_text())["rows"]
    assert row["compute_s"] == pytest.approx(4 * 0.0434)
    assert row["reduce_bound_s"] == pytest.approx(0.32, rel=0.01)
    assert row["step_s"] > row["compute_s"] + row["reduce_bound_s"]
    assert row["delayed_step_s"] > row["reduce_bound_s"]
    assert 0 < row["cpu_share"] < 1.5


def test_a_device_is_asked_for_about_the_parameters_that_were_named():
    assert device_figures(60, 1)["parameters_mb"] == 50
