"""A notice of preemption: a file that appears, a page that is found."""

import asyncio
import http.server
import threading

import pytest

from swarm_jax.launcher import preemption
from swarm_jax.launcher.preemption import preempted


@pytest.fixture
def metadata(monkeypatch):
    """A metadata server: (status, body) to answer with; and what it was asked."""
    monkeypatch.setattr(preemption, "POLL_S", 0.01)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers["Metadata-Flavor"])
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    answers, asked = [], []
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/notice", answers, asked
    server.shutdown()
    thread.join()
    server.server_close()


def wait_for_notice(file=None, url=None):
    return asyncio.run(asyncio.wait_for(preempted(file, url), 30))


def test_a_file_is_a_notice(tmp_path):
    (tmp_path / "go").touch()
    assert wait_for_notice(file=tmp_path / "go") == f"{tmp_path / 'go'} is there"


@pytest.mark.parametrize(
    "quiet", [(404, b"no such page"), (200, b"FALSE"), (200, b""), (503, b"busy")]
)
def test_a_page_that_says_something_is_a_notice(metadata, quiet):
    url, answers, asked = metadata
    answers += [quiet, quiet, (200, b'{"action": "terminate"}')]
    assert "terminate" in wait_for_notice(url=url)
    assert asked == ["Google"] * 3


def test_nothing_to_poll_is_no_notice(tmp_path):
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await preempted(tmp_path / "never", None)

    asyncio.run(main())
