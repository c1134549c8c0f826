"""The folder of a daemon's sockets: removed at the end, or by the next start.

A process that is killed removes nothing. So its folder holds a file that is locked as
long as its owner lives; the kernel unlocks it whatever way that ends. Who starts next
removes the folders whose lock is free: no process id is trusted, since ids are used
again.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PARENT = Path("/tmp")
"""Socket paths are limited to 107 bytes, so not below a long TMPDIR."""
PREFIX = "swarm_jax_sockets-"
OWNER = "owner"
MIN_AGE_S = 60.0
"""Of a folder without an owner: younger ones may be about to get theirs."""


class SocketFolder:
    """A new folder that is ours until ``remove`` or our end, and no stale ones beside.

    Attributes:
        path: Its place.
    """

    def __init__(self):
        remove_stale_folders()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PARENT))
        claim = self.path / "claim"
        self._lock = os.open(claim, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Locked before it can be seen: nobody finds it free.
        claim.rename(self.path / OWNER)

    def remove(self) -> None:
        """May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def remove_stale_folders() -> None:
    """Removes what dead processes of this user have left."""
    for folder in PARENT.glob(f"{PREFIX}*"):
        # Another user's, or removed by somebody else meanwhile.
        with contextlib.suppress(OSError):
            if _is_stale(folder):
                # Others may be at it, too: who stops where a file is gone leaves the
                # rest without an owner, which nobody touches for a while.
                shutil.rmtree(folder, ignore_errors=True)


def _is_stale(folder: Path) -> bool:
    if folder.stat().st_uid != os.getuid():
        return False
    try:
        owner = os.open(folder / OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime > MIN_AGE_S
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(owner)
