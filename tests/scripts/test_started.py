"""The age of a process."""

import subprocess
import sys
from pathlib import Path

CODE = """
import time
before_s = time.monotonic()
from scripts.started import since_start_s
at_s, first_s = time.monotonic(), since_start_s()
while time.monotonic() < at_s + 0.05:
    pass
again_s, then_s = since_start_s(), time.monotonic()
print(first_s, at_s - before_s, again_s - first_s, then_s - at_s)
"""


def test_it_grows_from_before_the_first_line_of_code():
    shown = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    age_s, importing_s, grown_s, passed_s = map(float, shown.stdout.split())
    assert age_s > importing_s > 0
    assert 0 < grown_s <= passed_s + 1e-6  # two clocks, as floating point numbers
