"""Peak memory of this process."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from scripts import memory


def test_the_peak_stays_when_memory_is_given_back():
    block = np.ones(1 << 24)
    peak = memory.peak_rss()["peak_rss_bytes"]
    assert peak >= block.nbytes
    del block
    # Linux counts pages in batches, so the last digits waver.
    assert memory.peak_rss()["peak_rss_bytes"] == pytest.approx(peak, rel=0.01)


def test_a_program_does_not_begin_with_what_its_parent_held():
    """As ``ru_maxrss`` does."""
    block = np.ones(1 << 25)
    printed = subprocess.run(
        [sys.executable, "-c", "from scripts import memory; print(memory.peak_rss())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert 0 < int(printed.strip("}\n").split(": ")[1]) < block.nbytes / 2


def test_a_cpu_has_no_memory_of_its_own():
    assert memory.peaks().keys() == {"peak_rss_bytes"}


def test_the_fullest_device_counts(monkeypatch):
    devices = [
        SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak})
        for peak in (7, 9, 8)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory.peaks()["peak_device_bytes"] == 9


def test_a_system_that_tells_nothing_is_named(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("Name: python\n")
    monkeypatch.setattr(memory, "STATUS", status)
    with pytest.raises(AssertionError, match="has no VmHWM"):
        memory.peak_rss()
