"""scripts.benchmark: what it refuses; the store and the codecs that it measures."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from scripts import benchmark, benchmarks, close_speed, mesh_speed
from scripts.codec_speed import codec_figures
from scripts.stage_speed import random_microbatch
from scripts.store_speed import store_speed
from scripts.wiring import make_programs
from swarm_jax.config import load_config
from swarm_jax.data import speed
from swarm_jax.errors import ConfigError
from swarm_jax.launcher.processes import ProcessDied
from swarm_jax.launcher.relay_cases import Case
from swarm_jax.metrics import write_json


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["local", "--repeats", "0"], "--repeats 0"),
        (["local", "--config.steps=3"], "the first 3 are not counted"),
        (["checkpoints", "--state_mb", "100", "0"], "--state_mb 0"),
        (["checkpoints", "--config.swarm.num_stages=1"], "a move needs two stages"),
        (["codecs", "--config.steps=9"], "codecs runs no experiment"),
        (["stage", "--stage", "2"], "--stage 2: this experiment has stages 0 to 1"),
        (["stage", "--peak_tflops", "0"], "--peak_tflops 0.0: use a positive number"),
        (["stage", "--mesh", "model=9"], "takes 9 devices, and there are 4"),
        (["stage", "--mesh", "data=3"], "do not divide among 3 devices"),
        (["data", "--mesh", "model=2"], "--mesh is for stage"),
        (["codecs", "--shape", "1", "0", "8"], "--shape 1 0 8: use 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        benchmark.main([*arguments])


def test_the_data_layer_is_measured_and_compared_with_the_need(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(speed, "_FEED_S", 0.01)
    monkeypatch.setattr(speed, "SAMPLE_BYTES", 100_000)
    report = tmp_path / "report.json"
    more = ["--config.data.max_corpus_bytes=300000", "--config.data.bpe_vocab_size=300"]
    assert benchmark.main(["data", "--repeats", "2", "--json", str(report), *more]) == 0
    found = json.loads(report.read_text())
    assert found["needed_tokens_per_s"] == 100 * 5000 / 2
    assert found["tokenisation_mb_per_s"].keys() == {"bytes", "bpe"}
    assert found["feeding_tokens_per_s"].keys() == {"stream", "documents"}
    for part in ("tokenisation_mb_per_s", "feeding_tokens_per_s"):
        for speeds in found[part].values():
            assert len(speeds) == 2 and min(speeds) > 0
    assert "needed: 250,000 tokens/s" in " ".join(capsys.readouterr().out.split())


def test_the_store_is_measured_on_a_state_of_about_the_size_asked_for(tmp_path):
    found = store_speed(tmp_path / "store", state_mb=3, repeats=2)
    assert found["state_mb"] == pytest.approx(3, abs=1)
    for speeds in (found["save_mb_per_s"], found["restore_mb_per_s"]):
        assert len(speeds) == 2 and min(speeds) > 0


def test_codecs_are_measured_and_reported(tmp_path, capsys):
    path = tmp_path / "report.json"
    arguments = ["codecs", "--shape", "2", "8", "128", "--json", str(path)]
    assert benchmark.main(arguments) == 0
    report = json.loads(path.read_text())
    assert report["shape"] == [2, 8, 128] and report["device_kind"] == "cpu"
    assert "skipped_steps" not in report
    wires = [row["wire"] for row in report["codecs"]]
    assert wires == ["float32", "bfloat16", "int8", "dynamic8"]
    shown = capsys.readouterr().out
    assert all(wire in shown for wire in wires)
    for row in report["codecs"]:
        for part in ("encode", "decode"):
            speed = 2 * 8 * 128 * 4 / 1e6 / (row[f"{part}_ms"] / 1e3)
            assert row[f"{part}_mb_per_s"] == pytest.approx(speed)


def test_codecs_lose_what_they_should():
    rows = {row["wire"]: row for row in codec_figures((1, 64, 512), repeats=1)}
    sizes = [rows[w]["bytes_per_value"] for w in ("float32", "bfloat16", "int8")]
    assert sizes == [4.0, 2.0, 1 + 2 / 128]
    assert rows["float32"]["rms_error"] == rows["float32"]["outlier_max_error"] == 0
    # Steps of s lose s / sqrt(12), and the largest of 128 normal values is about 2.75.
    assert rows["int8"]["rms_error"] == pytest.approx(2.75 / 127 / 12**0.5, rel=0.05)
    assert rows["int8"]["rms_error"] < rows["dynamic8"]["rms_error"]
    ordinary = {wire: row["ordinary_rms_error"] for wire, row in rows.items()}
    assert ordinary["bfloat16"] < ordinary["dynamic8"] < ordinary["int8"]
    for row in rows.values():
        assert row["rms_error"] <= row["max_error"]


SMALL = [f"--config.model.{name}" for name in ("model_dim=16", "ffn_dim=32")]
SMALL += ["--config.model.num_heads=2", "--config.model.sequence_length=8"]
SMALL += ["--config.swarm.layers_per_stage=(2,2)"]
SAME = [{"forward": 1, "update": None}, {"forward and loss": 1, "update": None}]
"""Passes of what is measured once, and of what each value of tuning.remat changes."""

DIFFERENT = [
    {
        "forward, keeping residuals": 1,
        "backward from residuals": 2,
        "backward, computing forward again": 2,
        "there and back, keeping": 3,
        "there and back, again": 3,
    },
    {"forward, loss and backward": 3},
]


@pytest.mark.parametrize(
    ("stage", "mesh", "full"),
    [(0, "model=2", "data=1,model=2"), (1, "data=2", "data=2,model=1")],
)
def test_meshes_are_compared_with_one_device_row_by_row(
    stage, mesh, full, tmp_path, capsys, monkeypatch
):
    path, written = tmp_path / "report.json", []

    def hear(path, report):
        write_json(path, report)
        written.append(len(json.loads(path.read_text())["rows"]))

    monkeypatch.setattr(mesh_speed, "write_json", hear)
    more = ["--stage", str(stage), "--json", str(path), *SMALL]
    more += ["--config.model.compute_dtype=float32", "--repeats", "1"]
    assert benchmark.main(["stage", "--mesh", mesh, *more]) == 0
    report = json.loads(path.read_text())
    meshes = ["data=1,model=1", full]
    cases = list(SAME[stage] | DIFFERENT[stage])
    rows = report["rows"]
    assert [(r["mesh"], r["case"]) for r in rows] == [
        (mesh, case) for mesh in meshes for case in cases
    ]
    for row in rows:
        one = rows[cases.index(row["case"])]
        assert row["speedup"] == one["ms"] / row["ms"]
    assert sorted(set(written)) == list(range(1, len(rows) + 1))
    assert [check["mesh"] for check in report["checks"]] == meshes
    for check in report["checks"]:
        assert check["gradient_norm"] > 0 and check["gradient_norm_difference"] < 1e-5
        assert (check["loss_sum"] is None) == (stage == 0)
        assert stage == 0 or check["loss_sum_difference"] < 1e-5
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{full} update:" in shown and "x one device" in shown


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_is_measured_and_reported(stage, tmp_path, capsys):
    path = tmp_path / "report.json"
    more = ["--stage", str(stage), "--peak_tflops", "2", "--json", str(path), *SMALL]
    remats = ["everything_saveable", "nothing_saveable"]
    more += ["--remat", *remats]
    assert benchmark.main(["stage", "--repeats", "1", *more]) == 0
    report = json.loads(path.read_text())
    passes = SAME[stage] | DIFFERENT[stage]
    expected = [(case, None) for case in SAME[stage]]
    expected += [(case, remat) for remat in remats for case in DIFFERENT[stage]]
    assert [(row["case"], row["remat"]) for row in report["rows"]] == expected
    width, hidden, length, vocabulary = 16, 32, 8, 384 * stage
    block = 2 * (4 * width**2 + 2 * width * hidden) + 4 * length * width
    forward = (2 * block + 2 * width * vocabulary) * 2 * length
    for row in report["rows"]:
        assert row["hardware"] == "cpu" and row["ms"] > 0
        if passes[row["case"]] is None:
            assert row["model_tflop_per_s"] is row["utilisation"] is None
        else:
            flop = row["model_tflop_per_s"] * 1e9 * row["ms"]
            assert flop == pytest.approx(passes[row["case"]] * forward)
            assert row["utilisation"] == row["model_tflop_per_s"] / 2
    assert [row["remat"] for row in report["memory"]] == remats
    everything, nothing = (row["residual_bytes"] for row in report["memory"])
    assert everything > 2 * nothing > 0 if stage == 0 else everything == nothing == 0
    for row in report["memory"]:
        assert (row["residual_bytes"] > 0) == (row["residuals_fit"] is not None)
    shown = " ".join(capsys.readouterr().out.split())
    assert all(words in shown for words in (*passes, *remats)) and "peak 2" in shown


def test_what_a_stage_is_measured_with_is_random():
    cut = ["--config.swarm.num_stages=4", "--config.swarm.layers_per_stage=(1,1,1,1)"]
    more = [*SMALL[:-1], *cut, "--config.swarm.wire=int8"]
    config = load_config("configs/benchmark_local.py", more)
    for stage in range(4):
        programs = make_programs(config, stage)
        x, grad_y, targets_BL = random_microbatch(config, stage)
        for arrays, specs in (
            (x, programs.input_specs),
            (grad_y, programs.gradient_specs),
            ([targets_BL], [programs.targets_spec]),
        ):
            assert [(a.dtype.name, a.shape) for a in arrays] == list(specs)
            for array in arrays:
                values = np.asarray(array, np.float32)
                assert np.isfinite(values).all() and len(np.unique(values)) > 5
        assert 0 <= targets_BL.min() and targets_BL.max() < config.model.vocab_size


def test_each_round_of_the_relay_is_written_when_it_is_over(tmp_path, monkeypatch):
    path, seen = tmp_path / "relay.json", []

    class Bench:
        def __init__(self, *, case, **_):
            self._name = case.name

        def rounds(self, repeats, console):
            seen.append(json.loads(path.read_text()) if path.exists() else None)
            if self._name == "dies":
                raise ProcessDied("out of memory")
            yield [{"case": self._name, "rounds": 1}]
            if self._name == "is cut short":
                raise KeyboardInterrupt
            yield [{"case": self._name, "rounds": 2}]

    names = ["works", "dies", "is cut short", "never runs"]
    cases = [Case(name=name, cards=0) for name in names]
    monkeypatch.setattr(benchmarks.relay_bench, "RelayBench", Bench)
    monkeypatch.setattr(benchmarks.relay_cases, "choose", lambda *_: cases)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(["relay", "--json", str(path)])
    assert seen[0] is None and seen[1]["missing"] == names[1:]
    report = json.loads(path.read_text())
    rounds = [(row["case"], row["rounds"]) for row in report["rows"]]
    assert rounds == [("works", 2), ("is cut short", 1)]
    assert report["failed"] == ["dies"]
    assert report["missing"] == names[2:] and "torch" in report
    assert list(tmp_path.iterdir()) == [path]


def test_rows_of_a_run_that_is_cut_short_are_kept(tmp_path, monkeypatch):
    path = tmp_path / "close.json"

    def reduce_figures(*, peers, **_):
        if peers > 2:
            raise KeyboardInterrupt
        return {"peers": peers, "ratio_to_bound": 1.0}

    monkeypatch.setattr(close_speed, "reduce_figures", reduce_figures)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(["close", "--peers", "2", "4", "--json", str(path)])
    report = json.loads(path.read_text())
    assert [row["peers"] for row in report["reduce"]] == 3 * [2]
    assert report["device_times"] == [] and report["cores"] > 0


def test_a_benchmark_that_is_told_to_stop_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "scripts.benchmark", "codecs", "--shape", "1", "2"]
    command += ["8", "--repeats", "1000000000"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment) as running:
        while running.poll() is None and not list(tmp_path.iterdir()):
            time.sleep(0.01)
        running.terminate()
    assert running.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
