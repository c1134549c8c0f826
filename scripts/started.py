"""How long ago this process was started."""

import os
import time
from pathlib import Path

STAT = Path("/proc/self/stat")
START_TICKS = 19
"""Where the time is, counted after the program's name, which may hold spaces."""


def since_start_s() -> float:
    """Seconds since the kernel made this process: imports and all are part of it."""
    ticks = int(STAT.read_text().rpartition(")")[2].split()[START_TICKS])
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return now_s - ticks / os.sysconf("SC_CLK_TCK")
