"""Most memory that this process has had so far, for its metrics."""

import re
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_rss() -> dict[str, int]:
    """``peak_rss_bytes``, of main memory.

    The kernel's figure for this program. ``getrusage`` has another: it begins with what
    the process held before it became this program, which is what its parent held.
    """
    kib = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
    assert kib is not None, f"{STATUS} has no VmHWM"
    return {"peak_rss_bytes": int(kib[1]) * 1024}


def peaks() -> dict[str, int]:
    """That and ``peak_device_bytes``, in use by jax on the fullest of its devices.

    Left out on a CPU, whose memory is main memory.
    """
    # Here, because a trainer does without jax.
    import jax

    stats = [device.memory_stats() for device in jax.local_devices()]
    if None in stats:
        return peak_rss()
    device_bytes = max(found["peak_bytes_in_use"] for found in stats)
    return peak_rss() | {"peak_device_bytes": device_bytes}
