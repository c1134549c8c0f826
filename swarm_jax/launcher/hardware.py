"""What this machine is, in words."""

import os
import platform
import subprocess
from collections import Counter
from pathlib import Path


def hardware(cards: int) -> str:
    """The GPUs that figures were measured on; the processor if it was that.

    Args:
        cards: GPUs that were used; 0 for the CPU.
    """
    return _gpus(cards) if cards else _processor()


def _gpus(cards: int) -> str:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    listing = subprocess.run(query, capture_output=True, text=True, check=True)
    names = Counter(listing.stdout.strip().splitlines()[:cards])
    return " + ".join(f"{count} x {name}" for name, count in names.items())


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    cores = len(os.sched_getaffinity(0))
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return f"{cores} cores of {models[0] if models else platform.machine()}"
