"""Where parameters and optimizer state are; ``test_offload.py`` puts them there."""

import jax

from swarm_jax.stage import home
from swarm_jax.stage.home import Home, optimizer_home


def test_a_cpu_has_them_in_main_memory_anyway():
    assert optimizer_home(True) == optimizer_home(False) == Home()


def test_an_accelerators_host_is_used_when_it_is_asked_for(monkeypatch):
    cpu = jax.devices("cpu")[0]
    monkeypatch.setattr(home.jax, "default_backend", lambda: "gpu")
    assert optimizer_home(True) == Home(cpu)
    assert optimizer_home(False) == Home()
