"""Parameters and optimizer state in main memory."""

import os
import subprocess
import sys
from pathlib import Path

import jax

from swarm_jax.stage import home
from swarm_jax.stage.home import Home, optimizer_home

HERE = Path(__file__).parent
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def test_with_a_device_that_is_not_the_host():
    """In a process of its own: this one has one device for good."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [sys.executable, *command, str(HERE / "on_two_devices.py")],
        env=os.environ | TWO_DEVICES,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout


def test_a_cpu_has_them_in_main_memory_anyway():
    assert optimizer_home(True) == optimizer_home(False) == Home()


def test_an_accelerators_host_is_used_when_it_is_asked_for(monkeypatch):
    cpu = jax.devices("cpu")[0]
    monkeypatch.setattr(home.jax, "default_backend", lambda: "gpu")
    assert optimizer_home(True) == Home(cpu)
    assert optimizer_home(False) == Home()
