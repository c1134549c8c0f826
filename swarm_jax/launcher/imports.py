"""Large libraries, imported in less time."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def many() -> Iterator[None]:
    """Around the imports of jax, torch and what else makes a million objects.

    While they are made, the garbage collector looks through all of them again and
    again, and finds nothing. Nor does it afterwards, when it would hold up heartbeats.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
