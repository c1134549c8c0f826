"""What raw streams carry, both ways, through two daemons of this machine."""

import json

from scripts import relay_streams


def test_both_directions_carry_something(tmp_path):
    path = tmp_path / "streams.json"
    relay_streams.main(["--seconds", "0.5", "--json", str(path)])
    report = json.loads(path.read_text())
    assert set(report) == {"there_bytes_per_s", "back_bytes_per_s"}
    assert min(report.values()) > 0
