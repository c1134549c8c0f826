"""The relay benchmark over stand-ins for its three systems."""

import io

import pytest
from rich.console import Console

from swarm_jax.config import load_config
from swarm_jax.errors import ConfigError
from swarm_jax.launcher import relay_bench, relay_cases
from swarm_jax.launcher.hardware import hardware
from swarm_jax.launcher.processes import ProcessDied
from swarm_jax.launcher.relay_bench import RelayBench, compared, relay_table

# Reads its arguments; the script says what it is by its name.
STAND_IN = """
import json, os, pathlib, signal, sys, time
def argument(name):
    return sys.argv[sys.argv.index(name) + 1]
def write(path, value):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")  # or a reader could find half of it
    partial.write_text(value)
    partial.replace(path)
"""
LAUNCH = """
folder = pathlib.Path(argument("--workdir"))
lines = [
    {"time_s": 10 * step + s, "step": step, "answered": 10 * s,
     "microbatches_per_step": 100}
    for step in range(5) for s in range(10)
]
steps = [
    {"step": s, "tokens": 4000, "step_s": 10.0, "microbatch_p50_s": 0.1,
     "microbatch_p95_s": 0.3}
    for s in range(1, 6)
]
jsonl = lambda records: "".join(json.dumps(r) + "\\n" for r in records)
write(folder / "metrics" / "swarm.jsonl", jsonl(lines))
write(folder / "metrics" / "trainer.jsonl", jsonl(steps))
write(folder / "summary.json", json.dumps({
    "activation_bytes_per_token_per_boundary": 70.0,
    "gradient_bytes_per_token_per_boundary": 66.0,
    "same_host_share": 1.0,
}))
"""
LIMIT = """
report = {"tokens_per_s": 800.0, "device_to_host_bytes_per_token": 132.0}
write(argument("--json"), json.dumps(report))
"""
STREAMS = """
report = {"there_bytes_per_s": 70000.0, "back_bytes_per_s": 66000.0}
assert "--device" not in sys.argv
write(argument("--json"), json.dumps(report))
"""
PEER = """
if "--serve" in sys.argv:
    assert "--servers" not in sys.argv
    write(argument("--ready_file"), "{}")
    signal.pause()
assert all(pathlib.Path(f).exists() for f in sys.argv if f.endswith(("-0.json")))
speeds = {"NONE": 10.0, "FLOAT16": 20.0, "MEANSTD_16BIT": 15.0}
if "--fail" in sys.argv:
    sys.exit("out of memory")
if "--stall" in sys.argv and "peer0.0" in argument("--json"):
    sys.exit("0 microbatches in 1 s are too few")
write(argument("--json"), json.dumps({"tokens_per_s": speeds[argument("--wire")]}))
"""


@pytest.fixture
def make_bench(tmp_path, monkeypatch):
    """``make_bench(*more)`` of a toy experiment, with more arguments."""
    length = "--config.model.sequence_length=40"
    configs = {
        same_host: load_config(
            "configs/relay.py", [length, f"--config.tuning.same_host={same_host}"]
        )
        for same_host in (True, False)
    }
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "__init__.py").write_text("")
    sources = {"launch": LAUNCH, "relay_limit": LIMIT, "relay_peer": PEER}
    sources |= {"relay_streams": STREAMS}
    for name, source in sources.items():
        (scripts / f"{name}.py").write_text(STAND_IN + source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(relay_bench, "POLL_S", 0.01)

    def make(*more, same_host=True):
        return RelayBench(
            case=relay_cases.CASES[0],
            config=configs[same_host],
            experiment=["--config", "x", *more],
            device="cpu",
            cards=[],
            cache_dir=tmp_path / "cache",
            seconds=1.0,
            folder=tmp_path / "runs",
        )

    return make


def test_a_case_is_measured_against_its_limit_and_the_fastest_wire(make_bench):
    console = Console(file=io.StringIO(), width=200)
    *_, (steady, closing) = make_bench().rounds(3, console)
    # 10 microbatches of 40 tokens per second.
    assert steady["case"] == "cpu_w512_s2"
    assert steady["tokens_per_s"] == pytest.approx(400)
    assert steady["limit_tokens_per_s"] == 800
    assert steady["ratio_to_limit"] == pytest.approx(0.5)
    assert steady["peer_wire"] == "FLOAT16" and steady["peer_tokens_per_s"] == 20
    assert steady["ratio_to_peer"] == pytest.approx(20)
    assert steady["bytes_per_token_per_boundary"] == 136
    assert steady["device_to_host_bytes_per_token"] == 132
    assert steady["cpu_s_per_gb"] is None
    assert steady["microbatches_per_step"] is None
    assert steady["rounds"] == 3 and "ratio_to_raw_stream" not in steady
    assert closing["case"] == "cpu_w512_s2_with_step_close"
    assert closing["tokens_per_s"] == 400 and closing["microbatches_per_step"] == 512
    lines = console.file.getvalue().splitlines()
    assert [line.split(":")[0].split()[-1] for line in lines[-3:]] == ["0", "1", "2"]
    console.print(relay_table([steady, closing]))
    assert "cpu_w512_s2_with_step_close" in console.file.getvalue()


def test_peers_that_meet_through_libp2p_are_compared_with_raw_streams(make_bench):
    console = Console(file=io.StringIO(), width=200)
    [[steady, closing]] = make_bench(same_host=False).rounds(1, console)
    for row in (steady, closing):
        # 136,000 bytes a second, at 136 of a token.
        assert row["raw_stream_tokens_per_s"] == pytest.approx(1000)
        assert row["ratio_to_raw_stream"] == pytest.approx(0.4)
    console.print(relay_table([steady]))
    assert "0.400" in console.file.getvalue()


def test_a_system_that_fails_tells_its_last_words(make_bench):
    with pytest.raises(ProcessDied, match="out of memory"):
        list(make_bench("--fail").rounds(1, Console(file=io.StringIO())))


def test_a_baseline_that_stalls_is_started_again(make_bench):
    console = Console(file=io.StringIO(), width=200)
    first, (steady, _) = make_bench("--stall").rounds(2, console)
    assert [row["rounds"] for row in (*first, steady)] == [1, 1, 2]
    assert steady["peer_tokens_per_s"] == 20
    assert console.file.getvalue().count("0 microbatches in 1 s are too few") == 1


def test_ratios_to_the_limit_are_taken_round_by_round_that_to_the_peer_of_its_best():
    found = compared([10, 40, 30], [20, 50, 100], [1, 4, 2, 3])
    assert found["ratio_to_limit"] == 0.5 and found["ratio_to_peer"] == 7.5
    assert (found["tokens_per_s"], found["limit_tokens_per_s"]) == (30, 50)


def test_cases_are_those_that_fit_the_device():
    names = [[case.name for case in relay_cases.choose([], n)] for n in range(3)]
    assert names[0] == ["cpu_w512_s2"]
    assert names[1] == ["gpu1_w4096_s2", "gpu1_w1024_s2"]
    assert names[2] == [case.name for case in relay_cases.CASES[1:]]
    with pytest.raises(ConfigError, match="use some of cpu_w512_s2"):
        relay_cases.choose(["cpu"], 0)
    for name, cards in (("gpu2_w4096_s2_p2pd", 1), ("cpu_w512_s2", 1)):
        with pytest.raises(ConfigError, match="does not run on this device"):
            relay_cases.choose([name], cards)


@pytest.mark.parametrize("case", relay_cases.CASES, ids=lambda case: case.name)
def test_every_case_is_an_experiment(case):
    config = load_config("configs/relay.py", case.overrides)
    assert config.swarm.num_stages == 2 and config.swarm.wire == "int8"
    assert f"_w{config.model.model_dim}_" in case.name
    if "p2pd" in case.name:
        assert not config.tuning.same_host


def test_the_processor_is_named():
    assert " cores of " in hardware(0)
