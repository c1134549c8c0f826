"""Threads, devices and caches of the processes of a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_jax.errors import ConfigError
from swarm_jax.launcher.environment import (
    keep_programs,
    peer_environments,
    process_environment,
)

USE_JAX = """
import pathlib
import jax
jax.jit(lambda x: x @ x)(jax.numpy.ones((512, 512))).block_until_ready()
names = [p.read_text() for p in pathlib.Path("/proc/self/task").glob("*/comm")]
print(sum("XLAEigen" in name for name in names))
print(any(pathlib.Path(jax.config.jax_compilation_cache_dir).iterdir()))
"""


@pytest.fixture(autouse=True)
def no_gpu_settings(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)


def test_cpu_peers_divide_the_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    for peers, threads in ((1, "16"), (6, "2"), (40, "1")):
        environments = peer_environments("cpu", peers, tmp_path)
        assert [e["PJRT_NPROC"] for e in environments] == [threads] * peers


def test_jax_obeys_the_number_of_threads_and_fills_the_cache(tmp_path):
    environment = {**os.environ, **process_environment(tmp_path)}
    for threads in ("1", "3"):
        counted = subprocess.run(
            [sys.executable, "-c", USE_JAX],
            env=environment | {"PJRT_NPROC": threads},
            capture_output=True,
            check=True,
            text=True,
        )
        assert counted.stdout.split() == [threads, "True"]


def test_gpu_peers_go_round_the_cards_and_divide_shared_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    environments = peer_environments("cuda13", 5, tmp_path)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == list("47474")
    shares = [e["XLA_PYTHON_CLIENT_MEM_FRACTION"] for e in environments]
    assert shares == ["0.300", "0.450", "0.300", "0.450", "0.300"]
    assert {e["JAX_PLATFORMS"] for e in environments} == {"cuda,cpu"}


def test_a_card_of_its_own_is_not_limited(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for environment in peer_environments("cuda13", 2, tmp_path):
        assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environment


def test_peers_with_several_cards_take_them_in_turn(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    environments = peer_environments("cuda13", 3, tmp_path, devices_per_peer=2)
    cards = [e["CUDA_VISIBLE_DEVICES"] for e in environments]
    assert cards == ["0,1", "2,3", "0,1"]
    shares = [e.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for e in environments]
    assert shares == ["0.450", None, "0.450"]


def test_more_cards_than_there_are_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match="is to have 4 .* has 2"):
        peer_environments("cuda13", 1, tmp_path, devices_per_peer=4)


def test_a_cpu_pretends_to_be_several_devices(tmp_path):
    (environment,) = peer_environments("cpu", 1, tmp_path, devices_per_peer=4)
    assert environment["JAX_NUM_CPU_DEVICES"] == "4"
    (environment,) = peer_environments("cpu", 1, tmp_path)
    assert "JAX_NUM_CPU_DEVICES" not in environment


def test_cards_are_counted_with_nvidia_smi(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H200'\necho '  MIG 1g'\necho 'GPU 1: H'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    environments = peer_environments("cuda13", 3, tmp_path)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == ["0", "1", "0"]


def test_no_gpu_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="use --device cpu"):
        peer_environments("cuda13", 1, Path("cache"))


def test_a_process_started_by_hand_keeps_its_programs_too(monkeypatch, tmp_path):
    variable = "JAX_COMPILATION_CACHE_DIR"
    monkeypatch.setattr(os, "environ", {})
    keep_programs(tmp_path)
    assert os.environ[variable] == str(tmp_path / "jax")
    keep_programs(tmp_path / "other")
    assert os.environ[variable] == str(tmp_path / "jax")


def test_the_users_own_compilation_cache_is_used(monkeypatch, tmp_path):
    ours = process_environment(tmp_path)["JAX_COMPILATION_CACHE_DIR"]
    assert ours == str(tmp_path / "jax")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/shared")
    assert process_environment(tmp_path)["JAX_COMPILATION_CACHE_DIR"] == "/shared"
