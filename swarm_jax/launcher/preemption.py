"""Notice of preemption: clouds tell a spot machine seconds before they take it.

A file that appears (a shutdown hook writes it), or a URL that answers. Amazon's
``http://169.254.169.254/latest/meta-data/spot/instance-action`` is not found until the
machine is to go; Google's
``http://metadata.google.internal/computeMetadata/v1/instance/preempted`` says FALSE
until then and wants the header that is sent here.
"""

import argparse
import asyncio
import logging
import urllib.error
import urllib.request
from pathlib import Path

POLL_S = 1.0
TIMEOUT_S = 2.0
NOT_YET = ("", "false", "none")
MAX_ANSWER_BYTES = 65536

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--preemption_file`` and ``--preemption_url``."""
    parser.add_argument(
        "--preemption_file",
        type=Path,
        metavar="FILE",
        help="leave as soon as this file exists",
    )
    parser.add_argument(
        "--preemption_url",
        metavar="URL",
        help="leave as soon as this page, asked every second, is found and says "
        "anything but FALSE: a cloud's notice of preemption",
    )


async def preempted(file: Path | None, url: str | None) -> str:
    """Waits for the notice, for ever if there is nothing to poll; returns what it was.

    A URL that cannot be reached is no notice: that is logged once.
    """
    complained = False
    while True:
        if file is not None and file.exists():
            return f"{file} is there"
        if url is not None:
            try:
                answer = await asyncio.to_thread(_get, url)
                if answer.strip().lower() not in NOT_YET:
                    return f"{url} says {answer.strip()[:80]!r}"
            except OSError as error:
                if not complained:
                    logger.warning("no notice can be had from %s: %s", url, error)
                complained = True
        await asyncio.sleep(POLL_S)


def _get(url: str) -> str:
    """The body; empty while the page is not found."""
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    # Metadata servers are on the machine's own network: a proxy must not be asked.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            return response.read(MAX_ANSWER_BYTES).decode(errors="replace")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise
