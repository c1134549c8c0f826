"""What a stage server says of its start."""

import argparse
import asyncio

import pytest

from scripts import process, serving
from scripts.serving import READY, times_to_ready
from swarm_jax.roles.arrival import Parts


def test_the_time_to_ready_is_divided():
    times = times_to_ready(Parts(compile_s=6.0, download_s=3.0, busy_s=7.0), 9.5)
    assert times == {
        "start_to_ready_s": 9.5,
        "start_compile_s": 6.0,
        "start_download_s": 3.0,
        "start_rest_s": pytest.approx(2.5),
    }
    line = READY.format(**times)
    assert line.startswith("ready 9.5 s after its start: 6.0 s to compile, 3.0 s to")


def test_nobody_is_told_of_a_server_that_still_compiles(tmp_path, monkeypatch, capsys):
    """Who waits for --ready_file starts a trainer next."""
    programs = asyncio.Event()

    class Compute:
        async def ready(self):
            await programs.wait()

    class Node:
        peer_id = "12D3"

        def visible_maddrs(self):
            return ["/ip4/127.0.0.1"]

    for name in ("server_command", "trainer_command"):
        monkeypatch.setattr(process, name, lambda *_: "python -m")
    args = argparse.Namespace(ready_file=tmp_path / "ready.json", stage=1)

    async def scenario():
        telling = asyncio.ensure_future(
            serving.announce(args, Node(), "stage1-0", Compute())
        )
        await asyncio.sleep(0.01)
        assert not args.ready_file.exists() and not capsys.readouterr().out
        programs.set()
        await telling

    asyncio.run(scenario())
    assert args.ready_file.exists()
    assert "Stage 1 is served by 12D3" in capsys.readouterr().out
