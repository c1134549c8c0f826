"""For all tests: programs are compiled quickly rather than well, and once for all.

What one worker compiles, the others take from a shared cache. What takes long is to
compile, not to run what is as small as here.

There are four devices, for peers that have several; all else is on the first of them.
"""

import os
import shutil
import tempfile

import jax

VARIABLES = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}
DEVICES = 4
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def pytest_configure(config):
    os.environ.setdefault("XLA_FLAGS", QUICKLY)
    if "device_count" not in os.environ["XLA_FLAGS"]:
        jax.config.update("jax_num_cpu_devices", DEVICES)
    if hasattr(config, "workerinput") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="swarm_jax-tests-")
    os.environ.update(VARIABLES, JAX_COMPILATION_CACHE_DIR=folder)
    config.add_cleanup(lambda: shutil.rmtree(folder))
