"""For all tests: programs are compiled quickly rather than well, and once for all.

What one worker compiles, the others take from a shared cache. What takes long is to
compile, not to run what is as small as here.
"""

import os
import shutil
import tempfile

VARIABLES = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def pytest_configure(config):
    os.environ.setdefault("XLA_FLAGS", QUICKLY)
    if hasattr(config, "workerinput") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="swarm_jax-tests-")
    os.environ.update(VARIABLES, JAX_COMPILATION_CACHE_DIR=folder)
    config.add_cleanup(lambda: shutil.rmtree(folder))
