"""How busy this machine's processor is with what is measured."""

import time

import psutil


def processor_s() -> float:
    """Seconds that this process and its children, the daemons, have taken of it."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(time.user + time.system for time in times)


class Busy:
    """Measures from when it is made."""

    def __init__(self):
        self._began_s, self._before_s = time.perf_counter(), processor_s()

    def share(self) -> float:
        """Of all cores, so far."""
        cores_s = psutil.cpu_count() * (time.perf_counter() - self._began_s)
        return (processor_s() - self._before_s) / cores_s
