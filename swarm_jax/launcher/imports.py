"""Large libraries, imported in less time."""

import contextlib
import gc
from collections.abc import Iterator

from swarm_jax.launcher.signals import deferred


@contextlib.contextmanager
def many() -> Iterator[None]:
    """Around the imports of jax, torch and what else makes a million objects.

    While they are made, the garbage collector looks through all of them again and
    again, and finds nothing. Nor does it afterwards, when it would hold up heartbeats.

    Signals wait: an exception in the middle of jaxlib's import is a segmentation fault.
    """
    gc.disable()
    try:
        with deferred():
            yield
    finally:
        gc.freeze()
        gc.enable()
